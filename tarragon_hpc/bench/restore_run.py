"""One request of `bench restore`: its AW is killed on the way, or not; what that took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench.aftermath import resumptions
from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.injection import is_whole
from tarragon_hpc.bench.load import Prompt, follow
from tarragon_hpc.bench.processes import cpu_seconds
from tarragon_hpc.bench.restore_report import Sample
from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.faults import KILL
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.ids import Role
from tarragon_hpc.observe.timeline import read_timeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from tarragon_hpc.bench.service import Service
    from tarragon_hpc.cluster.client import Head
    from tarragon_hpc.cluster.faults import Victim

_SETTLE_S = 0.5
_POLL_S = 0.05
_PATIENCE_S = 60.0
_TRIES = 8


SPARE = 4
"""Tokens beyond the point: a kill takes effect a moment later than it is decided on."""


class Place:
    """A service on which requests run one at a time."""

    def __init__(self, service: Service, head: Head) -> None:
        self.service = service
        self._head = head
        self._chaos = Chaos(service.run_dir, head, lambda _: None)

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, service: Service) -> AsyncIterator[Place]:
        """Connected to the service's head."""
        async with head_of(service.run_dir) as head:
            yield cls(service, head)

    async def rest(self) -> dict[str, Any]:
        """The status once all workers serve, nothing runs, and the counters have been told.

        Raises ClusterError if that takes too long.
        """
        end = time.monotonic() + _PATIENCE_S
        while True:
            status = await self._head.status()
            if is_whole(status) and not status["requests"]["open"]:
                await asyncio.sleep(_SETTLE_S)
                return await self._head.status()
            if time.monotonic() > end:
                raise ClusterError(f"the service was not whole and idle after {_PATIENCE_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def owner(self) -> str:
        """The AW that the only request runs on."""
        running = (await self._head.status())["requests"]["running_on"]
        found = [worker for worker, count in running.items() if count]
        if len(found) != 1:
            raise ClusterError(f"one request on one AW was expected, found {running}")
        return str(found[0])

    def aim(self, worker: str) -> AbstractAsyncContextManager[Victim]:
        """See `Chaos.aim`."""
        return self._chaos.aim(worker)

    async def kill(self, victim: Victim) -> None:
        """Kill what was taken aim at."""
        await self._chaos.strike(victim, KILL)


async def replay(
    place: Place, strategy: str, prompt: Callable[[], list[int]], point: int
) -> Sample:
    """Generate `point` tokens and one more, without any failure."""
    before = await place.rest()
    pids = _pids(before)
    asked = Prompt(prompt(), point + 1)
    stream = Stream(0, time.monotonic())
    used = _cpu(pids)
    await follow(place.service.endpoint, asked, stream)
    spent = _cpu(pids) - used
    if stream.error is not None:
        raise ClusterError(f"a request failed: {stream.error}")
    nbytes = _traffic(await place.rest()) - _traffic(before)
    return Sample(
        strategy,
        point,
        stream.times[-1] - stream.began,
        nbytes,
        spent,
        len(asked.tokens) + point,
        0,
    )


async def lose(place: Place, strategy: str, prompt: Callable[[], list[int]], point: int) -> Sample:
    """Kill the request's AW when it has `point` tokens. Raises ClusterError."""
    for _ in range(_TRIES):
        sample = await _lose_once(place, strategy, prompt(), point)
        if sample is not None:
            return sample
    raise ClusterError(f"a request of {point} tokens was {_TRIES} times done before its AW died")


async def _lose_once(place: Place, strategy: str, tokens: list[int], point: int) -> Sample | None:
    """None if the request was done before its AW was."""
    before = await place.rest()
    asked = Prompt(tokens, point + SPARE)
    watch = _Watch(point)
    running = asyncio.create_task(follow(place.service.endpoint, asked, watch.stream, watch.heard))
    try:
        await _first(watch.begun, running)
        if running.done():
            return None
        worker = await place.owner()
        async with place.aim(worker) as victim:
            await _first(watch.reached, running)
            if running.done():
                return None
            watch.look_at(_pids(before, but=worker))
            await place.kill(victim)
            await running
    finally:
        running.cancel()
    if watch.stream.error is not None:
        raise ClusterError(f"a request failed: {watch.stream.error}")
    timeline = read_timeline(place.service.run_dir / TIMELINE)
    found = [r for r in resumptions(timeline) if r.id == watch.stream.id]
    if not found:
        return None
    resumed = found[-1]
    had = resumed.restored + resumed.cached + resumed.computed - len(tokens)
    survivor = resumed.worker.partition(".")[0]
    experts = _traffic(await place.rest(), survivor) - _traffic(before, survivor)
    # Of the rows that it has sent to EWs since, those of the tokens after its first new one are no
    # part of going on.
    experts *= resumed.computed / (resumed.computed + asked.new_tokens - had - 1)
    return Sample(
        strategy,
        point,
        resumed.seconds,
        resumed.nbytes if resumed.restored else experts,
        watch.spent(had),
        resumed.computed,
        resumed.restored,
        experts,
        resumed.gap_s,
        resumed.reason,
    )


class _Watch:
    """A stream, and from some moment on what CPU time was used when each of its tokens was there.

    begun, reached: it has a token; it has `point` of them.
    """

    def __init__(self, point: int) -> None:
        self.stream = Stream(0, time.monotonic())
        self.begun, self.reached = asyncio.Event(), asyncio.Event()
        self._point = point
        self._pids: list[int] = []
        self._first = 0
        self._used: list[float] = []

    def look_at(self, pids: list[int]) -> None:
        """At the CPU time of these processes, from now on."""
        self._pids, self._first, self._used = pids, len(self.stream.tokens), [_cpu(pids)]

    def heard(self) -> None:
        """Tokens have come."""
        self.begun.set()
        if len(self.stream.tokens) >= self._point:
            self.reached.set()
        if self._pids:
            new = len(self.stream.tokens) - self._first + 1 - len(self._used)
            self._used += [_cpu(self._pids)] * new

    def spent(self, token: int) -> float:
        """CPU seconds from the beginning of the look until that token of the stream was there."""
        return self._used[token - self._first + 1] - self._used[0]


async def _first(event: asyncio.Event, running: asyncio.Task[None]) -> None:
    """Until something has happened, or the request has ended."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _pids(status: Mapping[str, Any], but: str = "") -> list[int]:
    """Of the workers that compute."""
    return [w["pid"] for w in status["workers"] if w["role"] != Role.CS and w["id"] != but]


def _cpu(pids: list[int]) -> float:
    """CPU seconds of these processes; those that are gone have none."""
    return sum(cpu_seconds(pid) or 0.0 for pid in pids)


def _traffic(status: Mapping[str, Any], worker: str | None = None) -> float:
    """Bytes between an AW (or all) and EWs, both ways, since the start."""
    stats = [
        w["stats"] for w in status["workers"] if w["role"] == Role.AW and worker in (None, w["id"])
    ]
    return float(sum(s["refe_request_bytes"] + s["refe_reply_bytes"] for s in stats))
