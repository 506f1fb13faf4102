"""Who was hit by the loss of an AW, how they went on, and what the others noticed of it. Pure.

All times are of the host's monotonic clock, in seconds: that of the clients and of the head.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench import arrivals as ar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tarragon_hpc.bench.arrivals import Stream

EVENT = "request resumed"


@dataclass(frozen=True, slots=True)
class Resumption:
    """A request that went on, on another AW than before: a line of the timeline.

    at: when its first new token reached the head. id: its client's. left: the AW that it was on.
    restored, cached, computed: its tokens, by where their KV came from. seconds: from the Submit to
    that token; gap_s: from the last token before it.
    """

    at: float
    id: str
    left: str
    worker: str
    restored: int
    cached: int
    computed: int
    nbytes: int
    seconds: float
    gap_s: float
    reason: str


def resumptions(lines: Iterable[Mapping[str, Any]]) -> list[Resumption]:
    """Those in the lines of a timeline, in order."""
    return [
        Resumption(
            line["mono"],
            line["id"],
            line["left"],
            f"{line['worker']}.{line['incarnation']}",
            line["restored"],
            line["cached"],
            line["computed"],
            line["nbytes"],
            line["seconds"],
            line["gap_s"],
            line["reason"],
        )
        for line in lines
        if line.get("event") == EVENT
    ]


def within(found: Iterable[Resumption], start: float, end: float) -> list[Resumption]:
    """Those whose first new token came between two moments."""
    return [r for r in found if start <= r.at <= end]


def describe(found: Sequence[Resumption]) -> dict[str, Any]:
    """How requests went on.

    exact: restored ones of which one token only was computed, as it is when the store had all that
    was known. computed: of restored ones, how many tokens were computed → how many requests.
    """
    restored = [r for r in found if r.restored]
    computed = [float(r.computed) for r in restored]
    seconds = [r.seconds for r in found]
    return {
        "resumed": len(found),
        "restored": len(restored),
        "anew": len(found) - len(restored),
        "exact": sum(r.computed == 1 for r in restored),
        "computed_p50": ar.percentile(computed, 50),
        "computed_p99": ar.percentile(computed, 99),
        "computed_max": max(computed, default=None),
        "computed": {str(n): k for n, k in sorted(Counter(map(int, computed)).items())},
        "nbytes": sum(r.nbytes for r in restored),
        "seconds_p50": ar.percentile(seconds, 50),
        "seconds_p99": ar.percentile(seconds, 99),
        "reasons": dict(Counter(r.reason for r in found if not r.restored)),
    }


def usual_gaps(steady: Iterable[Stream]) -> dict[int, float]:
    """prompt → the longest gap of its streams without faults (of several streams, the median)."""
    found: dict[int, list[float]] = {}
    for stream in steady:
        gap = ar.longest_gap(stream, 0.0, float("inf"))
        if gap is not None:
            found.setdefault(stream.prompt, []).append(gap)
    return {prompt: statistics.median(gaps) for prompt, gaps in found.items()}


def excess(
    streams: Iterable[Stream],
    usual: Mapping[int, float],
    start: float,
    end: float,
    hit: Collection[str] = (),
) -> list[float]:
    """By how much the longest gap of streams that were live at `start` exceeded their usual one
    until `end`, 0 if it did not. Streams with an id in `hit`, or of unknown prompts, are left out.
    """
    found = []
    for stream in streams:
        if stream.id in hit or stream.prompt not in usual or not stream.live(start):
            continue
        gap = ar.longest_gap(stream, start, end)
        if gap is not None:
            found.append(max(0.0, gap - usual[stream.prompt]))
    return found


def steady_excess(steady: Iterable[Stream], usual: Mapping[int, float]) -> list[float]:
    """The same of streams without faults, over their whole lives."""
    gaps = ((s.prompt, ar.longest_gap(s, 0.0, float("inf"))) for s in steady)
    return [max(0.0, gap - usual[prompt]) for prompt, gap in gaps if gap is not None]
