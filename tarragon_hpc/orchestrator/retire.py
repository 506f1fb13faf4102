"""How a worker leaves a run that goes on: when nothing depends on it any more. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.actions import Drain, Remove, Stop
from tarragon_hpc.orchestrator.copies import all_aws_follow
from tarragon_hpc.orchestrator.notices import may_move
from tarragon_hpc.orchestrator.state import GONE, LEAVING, Phase, State, Worker
from tarragon_hpc.orchestrator.stores import forgotten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.orchestrator.holdings import Holdings
    from tarragon_hpc.orchestrator.policy import Policy


def retire(holdings: Holdings, now: float, policy: Policy) -> Iterator[Stop | Drain]:
    """Let go who is retired, or given notice: an EW when no AW routes to it, an AW when it has
    finished, a CS when no AW knows it any more.
    """
    state = holdings.state
    others = any(w.serves and w.stays for w in state.of(Role.AW))
    for worker in state.workers.values():
        if not (worker.retired or may_move(worker, now, policy)):
            continue
        if worker.awaited or worker.phase in LEAVING | {Phase.PLANNED}:
            continue
        who = (worker.worker, worker.incarnation)
        if worker.role is Role.AW and worker.phase is Phase.SERVING:
            if others and not worker.draining:
                yield Drain(*who, worker.reason)
        elif not worker.live or _unused(worker, state):
            yield Stop(*who, policy.stop_grace_s, worker.reason)


def _unused(worker: Worker, state: State) -> bool:
    """Whether no AW sends anything to an EW or CS any more."""
    if worker.role is Role.CS:
        return forgotten(state, worker)
    return worker.worker not in state.named and all_aws_follow(state)


def remove(state: State, now: float, policy: Policy) -> Iterator[Remove]:
    """Forget who is retired and gone, and named nowhere."""
    named = state.named
    for worker in state.workers.values():
        gone = worker.phase is Phase.PLANNED or accounted_for(worker, now, policy)
        if worker.retired and gone and worker.worker not in named:
            yield Remove(worker.worker, worker.incarnation, worker.reason)


def accounted_for(worker: Worker, now: float, policy: Policy) -> bool:
    """Gone, and either its exit status is known or it has been waited for long enough."""
    if worker.phase not in GONE:
        return False
    waited = worker.fenced and now - worker.since > policy.exit_limit_s
    return worker.exit is not None or waited
