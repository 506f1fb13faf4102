"""When a dead worker is started again, and when never. Pure.

The first time at once. One that is never steady is given longer and longer pauses; one that was
started too often within the window, or whose node loses workers too often, is given up: a crash
loop ends in a clear state and not in a storm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.orchestrator.actions import Abandon, Start
from tarragon_hpc.orchestrator.state import GONE

if TYPE_CHECKING:
    from tarragon_hpc.orchestrator.policy import Policy
    from tarragon_hpc.orchestrator.state import State, Worker


def replace(worker: Worker, state: State, now: float, policy: Policy) -> Start | Abandon | None:
    """What to do about a worker that may be gone; nothing if it is not, or not yet."""
    if worker.phase not in GONE or not worker.member:
        return None
    if worker.exit is None and not worker.fenced:
        return None
    how = worker.exit or worker.reason
    if problem := _too_often(worker, state, now, policy):
        return Abandon(worker.worker, worker.incarnation, f"{problem}: {how}")
    if now < worker.since + pause_s(worker, policy):
        return None
    return Start(
        worker.worker,
        worker.next,
        f"in place of {worker.worker}.{worker.incarnation}: {how}",
    )


def pause_s(worker: Worker, policy: Policy) -> float:
    """From the death of a worker to its next start."""
    if worker.hasty == 0:
        return 0.0
    return min(policy.backoff_s * 2.0 ** min(worker.hasty - 1, 30), policy.backoff_limit_s)


def _too_often(worker: Worker, state: State, now: float, policy: Policy) -> str:
    since = now - policy.restart_window_s
    own = [at for at in worker.restarts if at >= since]
    if len(own) >= policy.max_restarts:
        took = now - own[0] if own else 0.0
        return f"given up after {len(own)} restarts in {took:.0f} s"
    if worker.place is None or policy.leaves_nodes:
        return ""
    node = [
        at
        for w in state.workers.values()
        for at, place in zip(w.restarts, w.restart_nodes, strict=True)
        if place == worker.place and at >= since
    ]
    if len(node) >= policy.max_restarts * policy.node_factor:
        took = now - min(node)
        return f"given up after {len(node)} restarts on node {worker.place} in {took:.0f} s"
    return ""
