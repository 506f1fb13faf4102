"""A checkpoint store that is stopped for a while, under load: what streams and AWs notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.bench import arrivals as ar
from tarragon_hpc.bench.injection import is_protected
from tarragon_hpc.bench.load import Load
from tarragon_hpc.bench.processes import resident_bytes
from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.faults import STOP
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.bench.arrivals import Stream
    from tarragon_hpc.bench.load import Prompt
    from tarragon_hpc.bench.service import Service
    from tarragon_hpc.cluster.client import Head

_USUAL_S = 10.0
_AFTER_S = 5.0
_PROTECT_S = 60.0
_SAMPLE_S = 0.1

PHASES = ("before", "during", "after")


class Sample(NamedTuple):
    """At a moment: resident memory of the largest AW; running requests, and whether a store has all
    of them; how many it has not.
    """

    at: float
    rss: int
    requests: int
    protected: bool
    bare: int


class Moments(NamedTuple):
    """Of the host's monotonic clock: the store is stopped and continued in between."""

    began: float
    stopped: float
    continued: float
    ended: float


@dataclass(frozen=True, slots=True)
class Stall:
    """By phase (before the stop, during it, after it): the longest gap between two tokens of any
    stream and the 99th percentile of all gaps, in seconds; the most memory an AW had, in bytes.

    extra_ms: how much longer the longest gap was than before. bare: the most requests that no store
    had meanwhile. protected_s: from the continuation until a store had all of them, None if never.
    skipped_rows: those that were copied later. failed: streams that ended with an error.
    """

    seconds: float
    gap_s: dict[str, float | None]
    gap_s_p99: dict[str, float | None]
    rss: dict[str, int | None]
    extra_ms: float | None
    bare: int
    protected_s: float | None
    skipped_rows: float
    streams: int
    failed: int


async def stall(service: Service, prompts: Sequence[Prompt], seconds: float) -> Stall:
    """Keep all prompts running, stop a store for so long. Raises ClusterError and UserError."""
    warm = Load(service.endpoint, prompts, len(prompts))
    await warm.once(range(len(prompts)))
    load = Load(service.endpoint, prompts, len(prompts))
    running = asyncio.create_task(load.run())
    samples: list[Sample] = []
    try:
        async with head_of(service.run_dir) as head:
            sampling = asyncio.create_task(_sample(head, samples))
            try:
                began = time.monotonic()
                await asyncio.sleep(_USUAL_S)
                chaos = Chaos(service.run_dir, head, lambda _: None)
                target = (await chaos.serving([Role.CS]))[0]
                async with chaos.aim(target.worker) as victim:
                    stopped = time.monotonic()
                    await chaos.strike(victim, STOP, lasts_s=seconds)
                continued = time.monotonic()
                while protected_after(samples, continued) is None:
                    if time.monotonic() > continued + _PROTECT_S or sampling.done():
                        break
                    await asyncio.sleep(_SAMPLE_S)
                await asyncio.sleep(_AFTER_S)
                moments = Moments(began, stopped, continued, time.monotonic())
                status = await head.status()
            finally:
                sampling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sampling
    finally:
        load.end()
        await running
    skipped = sum(w["stats"].get("kv_skipped_rows", 0.0) for w in status["workers"])
    return summarize_stall(load.all, samples, moments, skipped)


def protected_after(samples: Sequence[Sample], moment: float) -> float | None:
    """Seconds from a moment until a store had all requests, of which there were some."""
    times = (s.at - moment for s in samples if s.at > moment and s.protected and s.requests)
    return next(times, None)


def summarize_stall(
    streams: Sequence[Stream], samples: Sequence[Sample], moments: Moments, skipped_rows: float
) -> Stall:
    """What the streams and the samples show."""
    spans = dict(zip(PHASES, zip(moments, moments[1:], strict=False), strict=True))
    gaps = {
        phase: [gap for at, gap in ar.gaps_over_time(streams) if start < at <= end]
        for phase, (start, end) in spans.items()
    }
    rss = {
        phase: [s.rss for s in samples if start < s.at <= end]
        for phase, (start, end) in spans.items()
    }
    longest = {phase: max(values, default=None) for phase, values in gaps.items()}
    before, during = longest["before"], longest["during"]
    extra = None if before is None or during is None else (during - before) * 1e3
    return Stall(
        seconds=moments.continued - moments.stopped,
        gap_s=longest,
        gap_s_p99={phase: ar.percentile(values, 99) for phase, values in gaps.items()},
        rss={phase: max(values, default=None) for phase, values in rss.items()},
        extra_ms=extra,
        bare=max(
            (s.bare for s in samples if moments.stopped < s.at <= moments.continued), default=0
        ),
        protected_s=protected_after(samples, moments.continued),
        skipped_rows=skipped_rows,
        streams=len(streams),
        failed=sum(s.error is not None for s in streams),
    )


async def _sample(head: Head, samples: list[Sample]) -> None:
    while True:
        status = await head.status()
        pids = [w["pid"] for w in status["workers"] if w["role"] == Role.AW and w["pid"]]
        rss = max((resident_bytes(pid) or 0 for pid in pids), default=0)
        kept = status["checkpoint"]
        bare = kept["requests"] - kept["protected"]
        samples.append(Sample(time.monotonic(), rss, kept["requests"], is_protected(status), bare))
        await asyncio.sleep(_SAMPLE_S)
