"""The wait for a run on Slurm: until it serves, or until it is over.

judge          pure: what to make of one look
wait_for       looks again and again, and tells what has changed
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tarragon_hpc.cluster.local import quoted_tail
from tarragon_hpc.cluster.slurm.commands import SlurmError, show_job
from tarragon_hpc.cluster.slurm.job_ends import exit_of
from tarragon_hpc.cluster.slurm.jobs import HEAD
from tarragon_hpc.cluster.slurm.sight import job_log, queue_watch, slurm_status
from tarragon_hpc.cluster.slurm.standing import OVER, PREPARED
from tarragon_hpc.errors import ClusterError, UserError
from tarragon_hpc.observe.batch_words import batch_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Goal = Literal["serving", "ended"]

_LOOK_S = 1.0
_BATCH_S = 10.0
_SERVING = ("serving", "degraded")


class Verdict(NamedTuple):
    """done: the goal is reached. failed: it never will be. line: what to tell, of a wait too."""

    done: bool
    failed: bool
    line: str


def judge(status: Mapping[str, Any], goal: Goal) -> Verdict:
    """What one look at a run (`slurm_status`) means to somebody who waits."""
    state, reason = status["state"], status.get("reason") or ""
    line = f"{state}: {reason}" if reason else str(state)
    if goal == "serving" and state in _SERVING:
        return Verdict(True, False, line)
    if goal == "ended" and state == "ended":
        return Verdict(True, False, line)
    if state in OVER or state in ("ended", PREPARED):
        return Verdict(False, True, line)
    return Verdict(False, False, line)


def heads_left(status: Mapping[str, Any]) -> list[str]:
    """The jobs with a head that may still run."""
    return [job["job"] for job in status["jobs"] if job["kind"] == HEAD and not job["over"]]


def exit_status(text: str) -> int | None:
    """What a job's batch process ended with, of `scontrol show job`; None: unknown, or a signal."""
    status, signal = exit_of(text) or (0, -1)
    return None if signal else status


async def wait_for(
    run_dir: Path,
    goal: Goal,
    tell: Callable[[str], None],
    settled: Callable[[Mapping[str, Any]], bool] = lambda status: True,
) -> dict[str, Any]:
    """The run's status once it serves, or has ended. `tell` gets a line whenever there is news.

    settled: whether all is there that was waited for; if not, it is when the run's job is over.
    Raises UserError if the run will never get there by the user's mistake, ClusterError if by
    something else; both with the reason and the end of its log.
    """
    watch = queue_watch(run_dir)
    told = progress = ""
    batch_told = time.monotonic()
    while True:
        status = await slurm_status(run_dir, watch)
        verdict = judge(status, goal)
        if verdict.failed:
            # What Slurm has only forgotten may be about to come: a second look decides.
            status = await slurm_status(run_dir, watch, fresh=True)
            verdict = judge(status, goal)
        if verdict.done and (settled(status) or not heads_left(status)):
            return status
        if verdict.failed:
            raise await _failure(run_dir, status, verdict.line)
        if verdict.line != told:
            told = verdict.line
            tell(told)
        line = _progress(status)
        if line not in ("", progress) and time.monotonic() - batch_told >= _BATCH_S:
            progress, batch_told = line, time.monotonic()
            tell(line)
        await asyncio.sleep(_LOOK_S)


def explain(run_dir: Path, line: str) -> str:
    """A line on the end of a run, and the end of what its jobs have printed."""
    path = job_log(run_dir)
    tail = quoted_tail(path)
    return f"{line}; the end of {path}:{tail}" if tail else f"{line}; {path} is empty"


async def _failure(run_dir: Path, status: Mapping[str, Any], line: str) -> UserError | ClusterError:
    heads = [job["job"] for job in status["jobs"] if job["kind"] == HEAD]
    code = None
    if heads and status["state"] != PREPARED:
        try:
            code = exit_status(await show_job(heads[-1]))
        except SlurmError:
            code = None
    told = f"{run_dir.name}: {explain(run_dir, line)}"
    return UserError(told) if code == UserError.exit_status else ClusterError(told)


def _progress(status: Mapping[str, Any]) -> str:
    batch = status.get("batch")
    return batch_line(batch) if batch and batch["state"] != "starting" else ""
