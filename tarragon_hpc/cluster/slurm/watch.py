"""One look at Slurm's queue for everybody who asks: never more than one `squeue` at a time, and
one per `poll_s` whatever the number of jobs and of those who ask.

What is known of a job has three values: a view; not in the queue; could not be asked. The last two
are no proof that it ended: Slurm forgets ids soon after their end (MinJobAge), and squeue fails
whenever the controller is busy.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm import queue
from tarragon_hpc.cluster.slurm.commands import SlurmError, acall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tarragon_hpc.cluster.slurm.queue import JobView

_FRESH_S = 2.0
"""Between two looks even if somebody must know now."""
_MAY_TAKE_S = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was asked for. views: of the jobs that Slurm knows, or knew to be over. missing: jobs
    that are not in the queue (any more, or not yet). error: why the last look failed, if it did;
    the views are then older. A job in neither could not be asked for yet.
    """

    views: Mapping[str, JobView] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    error: str = ""


class QueueWatch:
    """Asks `squeue` for this user's jobs; everybody in one event loop shares the answers."""

    def __init__(
        self,
        poll_s: float,
        ask: Callable[[], Awaitable[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask`: what squeue prints; raises SlurmError."""
        self.poll_s = poll_s
        self.error = ""
        self._ask = ask or _squeue
        self._clock = clock
        self._lock = asyncio.Lock()
        self._began = float("-inf")
        self._answered = float("-inf")
        self._views: dict[str, JobView] = {}
        self._ended: dict[str, JobView] = {}
        self._first_asked: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"QueueWatch({len(self._views)} jobs, {self.error or 'no error'})"

    async def look(self, jobs: Iterable[str], *, fresh: bool = False) -> Look:
        """What is known of these jobs, no older than `poll_s`. fresh: of now. Jobs that are asked
        for the first time are looked at now too. Never raises because of Slurm.
        """
        now = self._clock()
        wanted = list(jobs)
        for job in wanted:
            self._first_asked.setdefault(job, now)
        async with self._lock:
            if self._stale(wanted, now if fresh else None):
                await self._refresh()
        return self._known(wanted)

    def forget(self, job: str) -> None:
        """Nobody will ask for this job again."""
        self._ended.pop(job, None)
        self._first_asked.pop(job, None)

    def _stale(self, jobs: list[str], asked: float | None) -> bool:
        """Whether there must be another look; `asked`: when somebody asked who must know now."""
        if asked is not None and self._began < asked:
            return True
        if any(self._first_asked[job] > self._began for job in jobs if job in self._first_asked):
            return True
        return self._clock() - self._began >= self.poll_s

    async def _refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._began + _FRESH_S - self._clock()))
        self._began = began = self._clock()
        try:
            text = await self._ask()
        except SlurmError as error:
            self.error = str(error)
            return
        self.error = ""
        self._answered = began
        self._views = queue.parse(text)
        for job, view in self._views.items():
            if view.over:
                if job in self._first_asked:
                    self._ended[job] = view
            else:
                self._ended.pop(job, None)

    def _known(self, jobs: list[str]) -> Look:
        views, missing = {}, set()
        for job in jobs:
            view = self._views.get(job) or self._ended.get(job)
            if view is not None:
                views[job] = view
            elif self._first_asked.get(job, self._answered) <= self._answered:
                missing.add(job)
        return Look(views, frozenset(missing), self.error)


async def _squeue() -> str:
    return await acall(queue.command(os.getuid()), limit_s=_MAY_TAKE_S)
