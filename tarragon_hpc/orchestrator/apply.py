"""(state, event) → state. Pure and total: a stale or impossible event changes only a counter."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, assert_never

from tarragon_hpc.ids import Role, parse_worker_id
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.placement import Placement
from tarragon_hpc.orchestrator.state import GONE, LEAVING, Phase, RunPhase, State, Worker

if TYPE_CHECKING:
    from collections.abc import Iterable


def begin(event: ev.RunCreated) -> State:
    """The state of a run that was just decided on."""
    workers = {w: Worker(w, parse_worker_id(w)[0], since=event.at) for w in event.workers}
    placement = Placement(
        event.experts,
        {w: tuple(e) for w, e in event.primaries.items()},
        {w: tuple(e) for w, e in event.shadows.items()},
    )
    return State(event.run, workers, placement, since=event.at)


def replay(events: Iterable[ev.Event]) -> State:
    """The state after a whole journal. Raises ValueError if it does not begin with RunCreated."""
    iterator = iter(events)
    first = next(iterator, None)
    if not isinstance(first, ev.RunCreated):
        raise ValueError("a journal begins with RunCreated")
    return reduce(apply, iterator, begin(first))


def apply(state: State, event: ev.Event) -> State:
    """The state after `event`."""
    match event:
        case ev.RunCreated():
            return replace(state, stale=state.stale + 1)
        case ev.TablePublished():
            return _publish(state, event)
        case ev.DrainBegan():
            if state.phase not in (RunPhase.STARTING, RunPhase.RUNNING):
                return state
            return _enter(state, RunPhase.DRAINING, event.at, event.reason, drain_s=event.drain_s)
        case ev.StopBegan():
            if state.phase in (RunPhase.STOPPING, RunPhase.ENDED):
                return state
            return _enter(state, RunPhase.STOPPING, event.at, event.reason, failed=event.failed)
        case ev.RunEnded():
            return _enter(state, RunPhase.ENDED, event.at, state.reason)
        case _:
            worker = state.workers.get(event.worker)
            changed = None if worker is None else _worker(worker, event)
            if changed is None:
                return replace(state, stale=state.stale + 1)
            return _settle(
                replace(state, workers={**state.workers, event.worker: changed}), event.at
            )


def _worker(worker: Worker, event: ev.AboutWorker) -> Worker | None:
    """The worker after an event about it; None: the event is stale."""
    if isinstance(event, ev.WorkerStarted):
        if event.incarnation <= worker.incarnation or worker.phase not in GONE | {Phase.PLANNED}:
            return None
        return Worker(
            worker.worker, worker.role, Phase.STARTING, event.incarnation, event.at, event.pid
        )
    if event.incarnation != worker.incarnation:
        return None
    if isinstance(event, ev.WorkerExited):
        if worker.phase in GONE:
            return replace(worker, exit=event.exit)
        end = Phase.STOPPED if worker.phase is Phase.STOPPING else Phase.DEAD
        return _move(worker, end, event.at, exit=event.exit, reason=worker.reason or event.exit)
    if isinstance(event, ev.WorkerFenced):
        return replace(worker, fenced=True)
    if worker.phase in GONE:
        # The other half of the same news, exit and end of connection, is not stale.
        return worker if isinstance(event, ev.WorkerLost) else None
    match event:
        case ev.WorkerRegistered():
            if worker.phase is not Phase.STARTING:
                return None
            known = {"pid": event.pid, "host": event.host, "address": event.address}
            return _move(worker, Phase.REGISTERED, event.at, **known)
        case ev.WorkerWelcomed():
            return _forward(worker, Phase.LOADING, event.at)
        case ev.WorkerReady():
            return _serving(
                _forward(replace(worker, detail=event.detail), Phase.READY, event.at), event.at
            )
        case ev.TableSent():
            return replace(worker, table_sent=max(worker.table_sent, event.epoch))
        case ev.TableTaken():
            applied = max(worker.table_applied, event.epoch)
            return _serving(replace(worker, table_applied=applied), event.at)
        case ev.WorkerSilent():
            return replace(worker, responsive=False)
        case ev.WorkerHeard():
            return replace(worker, responsive=True)
        case ev.WorkerSuspected():
            return worker
        case ev.WorkerLost():
            end = Phase.STOPPED if worker.phase is Phase.STOPPING else Phase.DEAD
            return _move(worker, end, event.at, reason=worker.reason or event.reason)
        case ev.WorkerStopAsked() | ev.WorkerLeaving():
            if worker.phase is Phase.STOPPING:
                return worker
            return _move(worker, Phase.STOPPING, event.at, reason=event.reason)
        case _:
            assert_never(event)


def _publish(state: State, event: ev.TablePublished) -> State:
    if event.epoch <= state.epoch:
        return replace(state, stale=state.stale + 1)
    table = tuple(tuple(holders) for holders in event.table)
    named = {worker for holders in table for worker in holders}
    workers = {
        name: _forward(worker, Phase.SERVING, event.at)
        if name in named and worker.phase is Phase.READY
        else worker
        for name, worker in state.workers.items()
    }
    return _settle(replace(state, epoch=event.epoch, table=table, workers=workers), event.at)


def _settle(state: State, at: float) -> State:
    """A run has started once every worker serves."""
    serving = all(w.phase is Phase.SERVING for w in state.workers.values())
    if state.phase is RunPhase.STARTING and serving:
        return _enter(state, RunPhase.RUNNING, at, "all workers serve")
    return state


def _serving(worker: Worker, at: float) -> Worker:
    """An AW serves once it is ready and routes by a table; in whichever order that came."""
    if worker.role is Role.AW and worker.phase is Phase.READY and worker.table_applied:
        return _move(worker, Phase.SERVING, at)
    return worker


_ORDER = list(Phase)


def _forward(worker: Worker, phase: Phase, at: float) -> Worker:
    """Enter a later phase of the start; a worker that is further on or leaving stays there."""
    if worker.phase in LEAVING or _ORDER.index(worker.phase) >= _ORDER.index(phase):
        return worker
    return _move(worker, phase, at)


def _move(worker: Worker, phase: Phase, at: float, **known: Any) -> Worker:
    return replace(worker, phase=phase, since=at, **known)


def _enter(state: State, phase: RunPhase, at: float, reason: str, **known: Any) -> State:
    return replace(state, phase=phase, since=at, reason=reason, **known)
