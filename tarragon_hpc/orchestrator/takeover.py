"""What a change of the head means to the state of a run. Pure.

A head that takes over knows what the journal says, which may be a moment old, and nothing else. So
every worker that may still run is *awaited*: taken to be what it was until it comes and says what
it is, or is known to be gone. After a handover nobody is: all places are filled anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.state import GONE, Order, Phase, RunPhase, State, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

_OVER = (RunPhase.STOPPING, RunPhase.ENDED)


def change_head(state: State, event: ev.HeadChanged) -> State | None:
    """The state as the new head begins with it; None: it is no newer than the one that there is."""
    if event.head <= state.head:
        return None

    def moved(time: float) -> float:
        return min(time + event.shift, event.at)

    revived = state.handover and state.phase in _OVER
    workers = {
        name: _reserve(_rebase(worker, moved), event)
        for name, worker in state.workers.items()
        if not (revived and worker.retired)
    }
    retired = {name: w.next for name, w in state.workers.items() if name not in workers}
    known: dict[str, Any] = {
        "head": event.head,
        "changed": event.at,
        "since": event.at if state.phase is RunPhase.STARTING else moved(state.since),
        "removed": _removed(state, event) | retired,
        "down_since": None if state.down_since is None else event.at,
    }
    if revived:
        places = {name: _anew(worker, event.at) for name, worker in workers.items()}
        phase = RunPhase.RUNNING if state.ran else RunPhase.STARTING
        known |= {"phase": phase, "since": event.at, "reason": f"head {event.head} goes on with it"}
        known |= {"handover": False, "failed": False, "reviving": True, "table": ()}
        return replace(state, workers=places, **known)
    awaited = {name: _await(worker, event.at) for name, worker in workers.items()}
    return replace(state, workers=awaited, **known)


def leftovers(past: State) -> list[Worker]:
    """The workers of the head before whose processes may still be there."""
    return [w for w in past.workers.values() if w.phase is not Phase.PLANNED and w.exit is None]


def expects(worker: Worker | None, incarnation: int, *, anew: bool) -> bool:
    """Whether the run waits for this incarnation of a worker to register; `anew`: for the first
    time in its life.
    """
    if worker is None or worker.incarnation != incarnation:
        return False
    return worker.phase is Phase.STARTING or (worker.awaited and not anew)


def returned(state: State, event: ev.WorkerReturned) -> State | None:
    """A worker of an earlier head is there and says what it is; None: nobody waits for it."""
    worker = state.workers.get(event.worker)
    if worker is None or not expects(worker, event.incarnation, anew=False):
        return None
    standing = event.standing
    epoch = state.epoch
    if standing.table_sent > epoch:
        # A head that was superseded has published on. Whoever follows it must follow this one.
        epoch = standing.table_sent + 1
    orders = tuple(Order(o.load, frozenset(o.experts), event.at) for o in standing.orders)
    if not standing.welcomed:
        phase = Phase.REGISTERED
    elif standing.detail is None:
        phase = Phase.LOADING
        orders = (Order(True, frozenset(standing.experts), event.at), *orders)
    else:
        phase = _serving(state, worker, event)
    draining = worker.draining and standing.leaving
    if standing.leaving and not draining:
        phase = Phase.STOPPING
    dropping = {e for order in standing.orders if not order.load for e in order.experts}
    experts = range(state.placement.experts)
    back = replace(
        worker,
        phase=phase,
        since=worker.since if phase is worker.phase else event.at,
        pid=event.pid,
        host=event.host,
        address=event.address,
        step=event.step or worker.step,
        node=event.node or worker.node,
        queued="",
        expected_start="",
        detail=standing.detail or {},
        holds=frozenset(standing.holds).intersection(experts) - dropping,
        orders=orders,
        table_sent=standing.table_sent,
        table_applied=standing.table_applied,
        stores=standing.stores,
        responsive=True,
        draining=draining,
        awaited=False,
        suspected=False,
    )
    return replace(state, epoch=epoch, workers={**state.workers, worker.worker: back})


def suspect(state: State, event: ev.WorkerSuspected | ev.WorkerCleared | ev.FailureMasked) -> State:
    """Of a worker that is awaited, what its peers say of it is all that there is."""
    worker = state.workers.get(event.worker)
    if worker is None or not worker.awaited or worker.incarnation != event.incarnation:
        return state
    suspected = not isinstance(event, ev.WorkerCleared)
    return replace(
        state, workers={**state.workers, worker.worker: replace(worker, suspected=suspected)}
    )


def _serving(state: State, worker: Worker, event: ev.WorkerReturned) -> Phase:
    """The phase of a worker that is ready."""
    standing = event.standing
    serves = {
        Role.AW: 0 < standing.table_applied >= standing.table_sent,
        Role.EW: worker.worker in state.named,
        Role.CS: True,
    }
    return Phase.SERVING if serves[worker.role] else Phase.READY


def _rebase(worker: Worker, moved: Callable[[float], float]) -> Worker:
    """With all times by the clock of the new head."""
    return replace(
        worker,
        since=moved(worker.since),
        silent_at=moved(worker.silent_at),
        started=moved(worker.started),
        noticed=moved(worker.noticed) if worker.noticed else 0.0,
        restarts=tuple(map(moved, worker.restarts)),
        orders=tuple(order._replace(at=moved(order.at)) for order in worker.orders),
        failed={e: failure._replace(at=moved(failure.at)) for e, failure in worker.failed.items()},
    )


def _reserve(worker: Worker, event: ev.HeadChanged) -> Worker:
    """Keep clear of incarnations that exist although the journal does not know them: a head writes
    it down just after it has started one.
    """
    return replace(worker, taken=max(worker.next, event.claims.get(worker.worker, 0)))


def _removed(state: State, event: ev.HeadChanged) -> dict[str, int]:
    """The same for names that are not in use."""
    known = {name: number + 1 for name, number in state.removed.items()}
    for name, number in event.claims.items():
        if name not in state.workers:
            known[name] = max(number, known.get(name, 0))
    return known


def _await(worker: Worker, at: float) -> Worker:
    """One whose job is in Slurm's queue is still there; one that waited for a place of its head's
    never began, and is started anew.
    """
    if worker.phase in GONE or worker.phase is Phase.PLANNED:
        return worker
    if worker.waits_in_queue and worker.job:
        return worker
    if worker.waits_in_queue:
        never = "its head ended before it could be started"
        return replace(worker, phase=Phase.DEAD, since=at, reason=never, exit=never)
    return replace(worker, awaited=True, responsive=True)


def _anew(worker: Worker, at: float) -> Worker:
    """A place that is to be filled as if for the first time."""
    return Worker(
        worker.worker,
        worker.role,
        since=at,
        incarnation=worker.incarnation,
        taken=worker.taken,
        restarts=worker.restarts,
        restart_nodes=worker.restart_nodes,
    )
