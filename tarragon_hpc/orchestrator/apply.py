"""(state, event) → state. Pure and total: a stale or impossible event changes only a counter."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from tarragon_hpc.ids import parse_worker_id
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply_worker import after, forward
from tarragon_hpc.orchestrator.hopeless import down
from tarragon_hpc.orchestrator.placement import Placement
from tarragon_hpc.orchestrator.state import GONE, Phase, RunPhase, State, Worker
from tarragon_hpc.orchestrator.takeover import change_head, returned, suspect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def begin(event: ev.RunCreated) -> State:
    """The state of a run that was just decided on."""
    workers = {w: Worker(w, parse_worker_id(w)[0], since=event.at) for w in event.workers}
    placement = _placement(event.experts, event.primaries, event.shadows)
    return State(event.run, workers, placement, since=event.at, rules=event.rules, head=event.head)


def replay(events: Iterable[ev.Event]) -> State:
    """The state after a whole journal. Raises ValueError if it does not begin with RunCreated."""
    iterator = iter(events)
    first = next(iterator, None)
    if not isinstance(first, ev.RunCreated):
        raise ValueError("a journal begins with RunCreated")
    return reduce(apply, iterator, begin(first))


def apply(state: State, event: ev.Event) -> State:
    """The state after `event`."""
    folded = _fold(state, event)
    if folded.workers is state.workers and folded.phase is state.phase:
        return folded
    if not down(folded):
        return folded if folded.down_since is None else replace(folded, down_since=None)
    return folded if folded.down_since is not None else replace(folded, down_since=event.at)


def _fold(state: State, event: ev.Event) -> State:
    match event:
        case ev.RunCreated():
            return _stale(state)
        case ev.HeadChanged():
            return change_head(state, event) or _stale(state)
        case ev.WorkerReturned():
            back = returned(state, event)
            return _stale(state) if back is None else _settle(back, event.at)
        case ev.TablePublished():
            return _publish(state, event)
        case ev.WorkerAdded():
            return _add(state, event)
        case ev.WorkerRemoved():
            return _remove(state, event)
        case ev.PlacementChanged():
            placement = _placement(state.placement.experts, event.primaries, event.shadows)
            return replace(state, placement=placement)
        case ev.DrainBegan():
            if state.phase not in (RunPhase.STARTING, RunPhase.RUNNING):
                return state
            known: dict[str, Any] = {"drain_s": event.drain_s, "handover": event.handover}
            return _enter(state, RunPhase.DRAINING, event.at, event.reason, **known)
        case ev.StopBegan():
            if state.phase in (RunPhase.STOPPING, RunPhase.ENDED):
                return state
            how = {"failed": event.failed, "handover": event.handover}
            return _enter(state, RunPhase.STOPPING, event.at, event.reason, **how)
        case ev.RunEnded():
            return _enter(state, RunPhase.ENDED, event.at, state.reason)
        case ev.WorkerSuspected() | ev.WorkerCleared() | ev.FailureMasked():
            # What peers tell of it may come after it was replaced. It is for the timeline only.
            if event.incarnation > _newest(state, event.worker):
                return _stale(state)
            return suspect(state, event)
        case _:
            worker = state.workers.get(event.worker)
            changed = None if worker is None else after(worker, event)
            if changed is None:
                return _stale(state)
            changed = _sound(changed, state.placement.experts)
            return _settle(
                replace(state, workers={**state.workers, event.worker: changed}), event.at
            )


def _placement(
    experts: int, primaries: Mapping[str, list[int]], shadows: Mapping[str, list[int]]
) -> Placement:
    return Placement(
        experts,
        {w: tuple(e) for w, e in primaries.items()},
        {w: tuple(e) for w, e in shadows.items()},
    )


def _sound(worker: Worker, experts: int) -> Worker:
    """Whatever a worker says that it holds, only what the model has counts."""
    if all(0 <= expert < experts for expert in worker.holds):
        return worker
    return replace(worker, holds=worker.holds.intersection(range(experts)))


def _publish(state: State, event: ev.TablePublished) -> State:
    if event.epoch <= state.epoch:
        return _stale(state)
    table = tuple(tuple(holders) for holders in event.table)
    named = {worker for holders in table for worker in holders}
    workers = {
        name: forward(worker, Phase.SERVING, event.at)
        if name in named and worker.phase is Phase.READY
        else worker
        for name, worker in state.workers.items()
    }
    known: dict[str, Any] = {"epoch": event.epoch, "table": table, "reviving": False}
    return _settle(replace(state, workers=workers, **known), event.at)


def _add(state: State, event: ev.WorkerAdded) -> State:
    if event.worker in state.workers or event.incarnation < _newest(state, event.worker):
        return _stale(state)
    role, _ = parse_worker_id(event.worker)
    worker = Worker(event.worker, role, incarnation=event.incarnation, since=event.at)
    return replace(state, workers={**state.workers, event.worker: worker})


def _remove(state: State, event: ev.WorkerRemoved) -> State:
    worker = state.workers.get(event.worker)
    if worker is None or event.incarnation != worker.incarnation:
        return _stale(state)
    if not worker.retired or worker.phase not in GONE | {Phase.PLANNED}:
        return _stale(state)
    workers = {name: w for name, w in state.workers.items() if name != event.worker}
    removed = {**state.removed, event.worker: worker.incarnation}
    return replace(state, workers=workers, removed=removed)


def _newest(state: State, worker: str) -> int:
    """The last incarnation that had this name; 0: none yet, -1: no such worker."""
    if worker in state.workers:
        return state.workers[worker].incarnation
    return state.removed.get(worker, -1)


def _settle(state: State, at: float) -> State:
    """A run has started once every worker serves."""
    serving = all(w.serves for w in state.workers.values())
    if state.phase is RunPhase.STARTING and serving:
        return _enter(state, RunPhase.RUNNING, at, "all workers serve", ran=True)
    return state


def _stale(state: State) -> State:
    return replace(state, stale=state.stale + 1)


def _enter(state: State, phase: RunPhase, at: float, reason: str, **known: Any) -> State:
    return replace(state, phase=phase, since=at, reason=reason, **known)
