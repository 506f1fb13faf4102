"""The chain of jobs of a run (on_timelimit: chain): a successor waits in the queue while one runs.

The head of a job submits the next one at its own start, with --dependency=afterany: whatever ends
the job, the successor may start then, opens the same run and goes on. Who ends the run for good
cancels it; one that starts all the same finds the run ended, and leaves. `scancel` of the running
job therefore does not end the run; `tarragon stop` does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, jobs_of
from tarragon_hpc.cluster.slurm.sbatch import cancel, submit_head
from tarragon_hpc.errors import TarragonError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.config import Config
    from tarragon_hpc.observe.timeline import Timeline

_RETRY_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Link:
    """A job to submit: the `number`-th of the chain, which may start at the end of `after`."""

    number: int
    after: str


def next_link(jobs: Sequence[Job], mine: str, max_chain: int) -> Link | str:
    """The successor that the job `mine` should have; why none is to be submitted, in words. Pure.

    A head that died may have submitted one: then another head of the same job submits none.
    """
    number = number_of(jobs, mine)
    for job in later(jobs, mine):
        return f"job {job.job} is the successor"
    if number >= max_chain:
        return f"this is job {number} of a chain, and max_chain is {max_chain}: it is the last one"
    return Link(number + 1, mine)


def later(jobs: Sequence[Job], mine: str) -> list[Job]:
    """The jobs of the chain after `mine`. Pure."""
    number = number_of(jobs, mine)
    return [job for job in jobs if job.kind == HEAD and job.number > number and job.job != mine]


def until_now(jobs: Sequence[Job], mine: str) -> list[str]:
    """The jobs of the chain up to `mine`, which have had heads. Pure."""
    waiting = {job.job for job in later(jobs, mine)}
    return [job.job for job in jobs if job.kind == HEAD and job.job not in waiting]


def number_of(jobs: Sequence[Job], mine: str) -> int:
    """Which job of the chain this one is: as recorded; a job that nobody has, after all. Pure."""
    heads = [job for job in jobs if job.kind == HEAD]
    known = [job.number for job in heads if job.job == mine]
    return known[0] if known else 1 + max((job.number for job in heads), default=0)


def own_job(run_dir: Path) -> str:
    """The job that this head is in, or (outside of any) the newest of the run; empty: none."""
    inside = os.environ.get("SLURM_JOB_ID", "")
    heads = [job for job in jobs_of(run_dir) if job.kind == HEAD]
    return inside or (heads[-1].job if heads else "")


class Successor(Protocol):
    """What a head does for the one after it."""

    def begin(self) -> None:
        """See to it that there is one."""

    async def close(self, *, over: bool) -> None:
        """The head ends. over: so does the run."""


class Nobody:
    """No successor is wanted."""

    def begin(self) -> None:
        """Nothing is done."""

    async def close(self, *, over: bool) -> None:
        """Nothing is done."""


class Chain:
    """Submits the successor of this job, and cancels it if the run ends. `begin` in a loop."""

    def __init__(self, config: Config, run_dir: Path, timeline: Timeline) -> None:
        self._config = config
        self._run_dir = run_dir
        self._timeline = timeline
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Chain({self._run_dir.name})"

    def begin(self) -> None:
        """Submit it, and try again as long as that fails: the run goes on without it meanwhile."""
        self._task = asyncio.create_task(self._submit(), name="successor")

    async def close(self, *, over: bool) -> None:
        """Stop trying; cancel what was submitted if the run is over."""
        if self._task is not None:
            # A submission that is under way would be forgotten: its job is recorded in a thread.
            await asyncio.wait([self._task], timeout=0.0 if self._task.done() else 5.0)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if over:
            await asyncio.to_thread(cancel_later, self._run_dir)

    async def _submit(self) -> None:
        problem = ""
        while True:
            try:
                link = next_link(jobs_of(self._run_dir), own_job(self._run_dir), self._max)
                if isinstance(link, str):
                    log.info("%s", link)
                    return
                job = await asyncio.to_thread(
                    submit_head, self._config, self._run_dir, number=link.number, after=link.after
                )
            except TarragonError as error:
                if str(error) != problem:
                    problem = str(error)
                    log.warning("no successor could be submitted, and is tried again: %s", error)
                    self._timeline.record("successor refused", reason=problem)
                await asyncio.sleep(_RETRY_S)
            else:
                log.info("job %s waits for the end of job %s", job.job, link.after)
                self._timeline.record("successor submitted", job=job.job, number=link.number)
                return

    @property
    def _max(self) -> int:
        return self._config.cluster.slurm.max_chain


def successor_of(config: Config, run_dir: Path, timeline: Timeline) -> Successor:
    """Who sees to the job after this one, as configured."""
    cluster = config.cluster
    chained = cluster.backend == "slurm" and cluster.slurm.on_timelimit == "chain"
    if chained and own_job(run_dir):
        return Chain(config, run_dir, timeline)
    return Nobody()


def cancel_later(run_dir: Path) -> None:
    """Cancel the jobs that would go on with a run which has ended; as well as it goes."""
    jobs = [job.job for job in later(jobs_of(run_dir), own_job(run_dir))]
    if jobs:
        log.info("the run is over: cancelling job %s", ", ".join(jobs))
        cancel(*jobs)
