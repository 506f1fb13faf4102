"""What streams show of failures: gaps, throughput, changed answers. Pure.

All times are of one monotonic clock, in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(slots=True)
class Stream:
    """One streamed answer, as its client saw it. times: when each of `tokens` arrived.

    id: the service's name of it, once something has come.
    """

    prompt: int
    began: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    done: bool = False
    error: str | None = None
    id: str = ""

    def take(self, tokens: Sequence[int], now: float) -> None:
        """Tokens arrived."""
        self.tokens += tokens
        self.times += [now] * len(tokens)

    def live(self, at: float) -> bool:
        """Whether it was between its first and its last token."""
        return bool(self.times) and self.times[0] <= at < self.times[-1]


@dataclass(frozen=True, slots=True)
class Tally:
    """failed: ended with an error or never. changed: ended well, with other tokens than before."""

    streams: int
    failed: int
    changed: int


def longest_gap(stream: Stream, start: float, end: float) -> float | None:
    """The longest time between two tokens of which some lies in [start, end]."""
    pairs = zip(stream.times, stream.times[1:], strict=False)
    return max((b - a for a, b in pairs if b > start and a < end), default=None)


def gaps_of_live(streams: Iterable[Stream], start: float, end: float) -> list[float]:
    """The longest gap of every stream that was live at `start`, between then and `end`."""
    found = (longest_gap(s, start, end) for s in streams if s.live(start))
    return [gap for gap in found if gap is not None]


def percentile(values: Sequence[float], q: float) -> float | None:
    """The value that q percent do not exceed (one of them, the higher one); None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q / 100 * len(values)) - 1)]


def throughput(
    streams: Iterable[Stream], start: float, end: float, bin_s: float
) -> list[tuple[float, float]]:
    """(middle of the bin, tokens per second) from start to end; whole bins only."""
    counts = [0] * max(0, math.floor((end - start) / bin_s + 1e-9))
    for stream in streams:
        for at in stream.times:
            index = math.floor((at - start) / bin_s)
            if 0 <= index < len(counts):
                counts[index] += 1
    return [(start + (i + 0.5) * bin_s, n / bin_s) for i, n in enumerate(counts)]


def rate(streams: Iterable[Stream], start: float, end: float) -> float:
    """Tokens per second between two moments."""
    count = sum(1 for s in streams for at in s.times if start <= at < end)
    return count / (end - start) if end > start else 0.0


def gaps_over_time(streams: Iterable[Stream]) -> list[tuple[float, float]]:
    """(when it ended, length) of every gap between two tokens, in order of time."""
    pairs = ((a, b) for s in streams for a, b in zip(s.times, s.times[1:], strict=False))
    return sorted((b, b - a) for a, b in pairs)


def answers(streams: Iterable[Stream]) -> dict[int, list[int]]:
    """prompt → the tokens of the first stream that ended well."""
    found: dict[int, list[int]] = {}
    for stream in streams:
        if stream.done and stream.error is None:
            found.setdefault(stream.prompt, stream.tokens)
    return found


def compare(streams: Iterable[Stream], expected: Mapping[int, Sequence[int]]) -> Tally:
    """What became of streams whose right answers are known."""
    count = failed = changed = 0
    for stream in streams:
        count += 1
        if stream.error is not None or not stream.done:
            failed += 1
        elif list(expected.get(stream.prompt, ())) != stream.tokens:
            changed += 1
    return Tally(count, failed, changed)


def restart_gaps(before: Iterable[Stream], after: Mapping[int, Stream]) -> list[float]:
    """How long streams that were cut off waited for their next token.

    after: prompt → the same request, sent again to the restarted service. A stream whose next token
    never came is left out.
    """
    gaps = []
    for stream in before:
        again = after.get(stream.prompt)
        have = len(stream.times)
        if have and not stream.done and again is not None and len(again.times) > have:
            gaps.append(again.times[have] - stream.times[-1])
    return gaps
