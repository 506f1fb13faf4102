"""The end of a run on Slurm by `tarragon stop`: its head is told, and no job of it stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.client import stop_run
from tarragon_hpc.cluster.rendezvous import known_head
from tarragon_hpc.cluster.slurm.commands import SlurmError, acall
from tarragon_hpc.cluster.slurm.jobs import HEAD, jobs_of
from tarragon_hpc.cluster.slurm.sight import queue_watch
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.jobs import Job
    from tarragon_hpc.cluster.slurm.watch import Look, QueueWatch

# Before each look at what is left.
_PATIENCE_S = (3.0, 5.0, *[10.0] * 6, 4.0)
_IMPATIENCE_S = (0.0, 4.0, 4.0)
# Of job ids on one command line.
_AT_ONCE = 500


def left(jobs: Sequence[Job], look: Look) -> list[Job]:
    """The jobs that may still run or start: all but those that are known to be over. Pure."""
    views = look.views
    return [
        job
        for job in jobs
        if job.job not in look.missing and not (job.job in views and views[job.job].over)
    ]


def to_cancel(jobs: Sequence[Job], look: Look, *, patient: bool) -> list[str]:
    """Which of these jobs to cancel. patient: a head that was told to may be ending, and its job
    with it, once it has put the results in place. Pure.
    """
    return [
        job.job
        for job in left(jobs, look)
        if (view := look.views.get(job.job)) is None
        or (view.state != "COMPLETING" and not (patient and job.kind == HEAD and not view.waits))
    ]


async def end_run(run_dir: Path, drain_s: float, *, kill: bool) -> str:
    """End a run; what was done, in words. Its directory stays. Raises ClusterError.

    A run without a head loses its jobs. Otherwise the head drains and ends its workers first;
    `kill`: it is not asked.
    """
    watch = queue_watch(run_dir)
    told = False
    if not kill and known_head(run_dir) is not None:
        try:
            told = await stop_run(run_dir, drain_s)
        except ClusterError as error:
            raise ClusterError(
                f"{error}; `tarragon stop {run_dir.name} --kill` cancels the jobs of the run"
            ) from None
    cancelled = await _clear(run_dir, watch, told=told)
    if told:
        return "stopped" + (f"; cancelled {_names(cancelled)}" if cancelled else "")
    return f"cancelled {_names(cancelled)}" if cancelled else "had ended before"


async def _clear(run_dir: Path, watch: QueueWatch, *, told: bool) -> list[str]:
    """Cancel the jobs of a run until there is none; which. told: its head was told to end."""
    cancelled: dict[str, None] = {}
    pauses = _PATIENCE_S if told else _IMPATIENCE_S
    for number, pause_s in enumerate(pauses):
        await asyncio.sleep(pause_s)
        jobs = jobs_of(run_dir)
        look = await watch.look([job.job for job in jobs], fresh=True)
        if look.error:
            raise ClusterError(f"{look.error}; jobs of the run may be left")
        if not left(jobs, look):
            break
        if told and number == 0:
            continue  # most are about to end by themselves
        wanted = to_cancel(jobs, look, patient=told and number < len(pauses) - 2)
        await _cancel(wanted)
        cancelled |= dict.fromkeys(wanted)
    return list(cancelled)


async def _cancel(jobs: Sequence[str]) -> None:
    for first in range(0, len(jobs), _AT_ONCE):
        try:
            await acall(["scancel", "--quiet", *jobs[first : first + _AT_ONCE]])
        except SlurmError as error:
            # It may have ended meanwhile; whoever looks again sees it.
            if not error.unknown_job:
                raise


def _names(jobs: Sequence[str]) -> str:
    return f"job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)}"
