"""Workers that were given notice from outside the run (`wire.notice`): what to do about it. Pure.

Slurm preempts jobs, not steps, and tells only the steps of it. So when most workers of the head's
own job are given notice in a moment, the job is being taken away and the run is handed over. Any
other worker that was given notice (its job is one of its own, or somebody sent SIGTERM) is moved:
it leaves like one that retires, once nothing depends on it, and is replaced elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.orchestrator.actions import HandOver
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase, State, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.orchestrator.policy import Policy


def hand_over(state: State, now: float, policy: Policy) -> Iterator[HandOver]:
    """All workers of the head's job were given notice, or most of them and those were all."""
    if state.phase not in (RunPhase.STARTING, RunPhase.RUNNING):
        return
    workers = [w for w in state.workers.values() if _runs(w) and not w.waits_in_queue]
    here = [w for w in workers if job_of(w) == policy.job]
    noticed = [w for w in here if w.noticed]
    if not noticed:
        return
    waited = now - min(w.noticed for w in noticed) >= policy.notice_gather_s
    if len(noticed) == len(here) or (waited and 2 * len(noticed) > len(here)):
        whose = f"{len(noticed)} of {len(here)} workers were given notice ({noticed[0].reason})"
        job = f"job {policy.job}" if policy.job else "the run"
        yield HandOver(f"{job} is being taken away: {whose}")


def may_move(worker: Worker, now: float, policy: Policy) -> bool:
    """Whether this one was given notice, and by now it is clear that most others were not."""
    return bool(worker.noticed) and now - worker.noticed >= policy.notice_gather_s


def job_of(worker: Worker) -> str:
    """The Slurm job that a worker runs in; empty: none, or unknown."""
    return worker.job or worker.step.partition(".")[0]


def _runs(worker: Worker) -> bool:
    return worker.phase not in GONE and worker.phase is not Phase.PLANNED
