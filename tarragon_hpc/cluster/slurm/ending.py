"""The end of a run on Slurm by `tarragon stop`: its head is told, and no job of it stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.client import stop_run
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.cluster.slurm.commands import SlurmError, acall
from tarragon_hpc.cluster.slurm.jobs import HEAD, jobs_of
from tarragon_hpc.cluster.slurm.sight import queue_watch
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.jobs import Job
    from tarragon_hpc.cluster.slurm.watch import Look, QueueWatch

_LOOKS = 3
_GRACE_S = 4.0
# Of job ids on one command line.
_AT_ONCE = 500


def to_cancel(jobs: Sequence[Job], look: Look) -> list[str]:
    """The jobs that may still run or start: all but those that are known to be over. Pure."""
    views = look.views
    return [
        job.job
        for job in jobs
        if job.job not in look.missing and not (job.job in views and views[job.job].over)
    ]


def successors(jobs: Sequence[Job], look: Look) -> list[str]:
    """Jobs with a head that wait while another one runs, which would go on with the run. Pure."""
    heads = [job.job for job in jobs if job.kind == HEAD]
    waiting = [job for job in heads if job in look.views and look.views[job].waits]
    runs = any(
        job in look.views and not look.views[job].over for job in heads if job not in waiting
    )
    return waiting if runs else []


async def end_run(run_dir: Path, drain_s: float, *, kill: bool) -> str:
    """End a run; what was done, in words. Its directory stays. Raises ClusterError.

    A run without a head loses its jobs. Otherwise the head drains and ends its workers first;
    `kill`: it is not asked.
    """
    watch = queue_watch(run_dir)
    jobs = jobs_of(run_dir)
    look = await watch.look([job.job for job in jobs], fresh=True)
    told = False
    if not kill and _has_head(run_dir):
        await _cancel(successors(jobs, look))
        try:
            told = await stop_run(run_dir, drain_s)
        except ClusterError as error:
            raise ClusterError(
                f"{error}; `tarragon stop {run_dir.name} --kill` cancels the jobs of the run"
            ) from None
    cancelled = await _clear(run_dir, watch, patient=told)
    if told:
        return "stopped" + (f"; cancelled {_names(cancelled)}" if cancelled else "")
    return f"cancelled {_names(cancelled)}" if cancelled else "had ended before"


async def _clear(run_dir: Path, watch: QueueWatch, *, patient: bool) -> list[str]:
    """Cancel the jobs of a run until there is none; which. patient: they may be about to end."""
    cancelled: dict[str, None] = {}
    for number in range(_LOOKS):
        if number or patient:
            await asyncio.sleep(_GRACE_S)
        jobs = jobs_of(run_dir)  # there may be more of them: a head that dies submits nothing
        look = await watch.look([job.job for job in jobs], fresh=True)
        if look.error:
            raise ClusterError(f"{look.error}; jobs of the run may be left")
        left = to_cancel(jobs, look)
        if not left:
            break
        if number or not patient:
            await _cancel(left)
            cancelled |= dict.fromkeys(left)
    return list(cancelled)


async def _cancel(jobs: Sequence[str]) -> None:
    for first in range(0, len(jobs), _AT_ONCE):
        try:
            await acall(["scancel", "--quiet", *jobs[first : first + _AT_ONCE]])
        except SlurmError as error:
            # It may have ended meanwhile; whoever looks again sees it.
            if "nvalid job id" not in error.words:
                raise


def _has_head(run_dir: Path) -> bool:
    try:
        read_head(run_dir)
    except ClusterError:
        return False
    return True


def _names(jobs: Sequence[str]) -> str:
    return f"job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)}"
