"""(worker, event about it) → worker. Pure and total."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.state import (
    GONE,
    LEAVING,
    STEADY_S,
    Failure,
    Link,
    Order,
    Phase,
    Worker,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Restarts further back count no more, whatever the window.
_REMEMBERED = 4096
_ORDER = list(Phase)


def after(worker: Worker, event: ev.AboutWorker) -> Worker | None:
    """The worker after an event about it; None: the event is stale."""
    if isinstance(event, ev.WorkerStarted):
        return _start(worker, event)
    if event.incarnation != worker.incarnation:
        return None
    match event:
        case ev.WorkerExited():
            if worker.phase in GONE:
                return replace(worker, exit=event.exit)
            return _end(worker, event.at, event.exit, exit=event.exit)
        case ev.WorkerFenced():
            return replace(worker, fenced=True)
        case ev.WorkerRetired():
            return replace(worker, retired=True, reason=worker.reason or event.reason)
        case ev.WorkerGivenUp():
            if worker.phase not in GONE:
                return None
            return replace(worker, given_up=True, reason=event.reason)
        case ev.WorkerLost() if worker.phase in GONE:
            return worker  # the other half of the same news, exit and end of connection
        case _:
            return None if worker.phase in GONE else _of_the_living(worker, event)


def _of_the_living(worker: Worker, event: ev.AboutWorker) -> Worker | None:
    match event:
        case ev.WorkerRegistered():
            if worker.phase is not Phase.STARTING:
                return None
            known = {"pid": event.pid, "host": event.host, "address": event.address}
            slurm = {"step": event.step, "node": event.node, "awaited": False}
            return _move(_runs(worker, event.at), Phase.REGISTERED, event.at, **known, **slurm)
        case ev.WorkerQueued():
            return _queue(worker, event)
        case ev.WorkerWelcomed():
            told = Order(True, frozenset(event.experts), event.at)
            return forward(replace(worker, orders=(told,)), Phase.LOADING, event.at)
        case ev.WorkerReady():
            holds = _held(event.detail, worker.loading)
            ready = replace(worker, detail=event.detail, holds=holds, orders=())
            return _serving(forward(ready, Phase.READY, event.at), event.at)
        case ev.TableSent():
            return replace(worker, table_sent=max(worker.table_sent, event.epoch))
        case ev.TableTaken():
            applied = max(worker.table_applied, event.epoch)
            return _serving(replace(worker, table_applied=applied), event.at)
        case ev.StoresSent():
            return replace(worker, stores=event.stores)
        case ev.WorkerLinked():
            return _link(worker, event)
        case ev.LoadAsked() | ev.UnloadAsked():
            load, experts = isinstance(event, ev.LoadAsked), frozenset(event.experts)
            order = Order(load, experts, event.at)
            holds = worker.holds if load else worker.holds - experts
            return replace(worker, holds=holds, orders=(*worker.orders, order))
        case ev.HoldingReported():
            return _report(worker, event) if worker.live else None
        case ev.WorkerSilent():
            return replace(worker, responsive=False, silent_at=event.at)
        case ev.WorkerHeard():
            return replace(worker, responsive=True)
        case ev.WorkerLost():
            condemned = event.how in ev.CONDEMNED
            return _end(worker, event.at, event.reason, condemned=condemned)
        case ev.WorkerDrained():
            return replace(worker, draining=True, reason=worker.reason or event.reason)
        case ev.WorkerNoticed():
            return replace(
                worker, noticed=worker.noticed or event.at, reason=worker.reason or event.reason
            )
        case ev.WorkerStopAsked() | ev.WorkerLeaving():
            if worker.phase is Phase.STOPPING:
                return worker
            return _move(worker, Phase.STOPPING, event.at, reason=event.reason)
        case (
            ev.WorkerStarted()
            | ev.WorkerExited()
            | ev.WorkerFenced()
            | ev.WorkerRetired()
            | ev.WorkerGivenUp()
            | ev.WorkerRemoved()
            | ev.WorkerReturned()
            | ev.WorkerSuspected()
            | ev.WorkerCleared()
            | ev.FailureMasked()
        ):
            return worker  # seen to elsewhere
        case _:
            assert_never(event)


def _queue(worker: Worker, event: ev.WorkerQueued) -> Worker:
    if worker.phase is not Phase.STARTING:
        return replace(worker, job=event.job)  # its own connection was faster than the queue
    if not event.reason:
        return replace(_runs(worker, event.at), job=event.job)
    expected = event.expected_start
    return replace(worker, job=event.job, queued=event.reason, expected_start=expected)


def _runs(worker: Worker, at: float) -> Worker:
    """If it waited in a queue, its start begins now."""
    return replace(worker, started=at, queued="", expected_start="") if worker.queued else worker


def _start(worker: Worker, event: ev.WorkerStarted) -> Worker | None:
    again = worker.phase in GONE
    ran = again and not worker.queued  # waiting in a queue is no crash loop
    if event.incarnation < worker.next or not (again or worker.phase is Phase.PLANNED):
        return None
    return Worker(
        worker.worker,
        worker.role,
        Phase.STARTING,
        event.incarnation,
        event.at,
        event.pid,
        worker.host,
        node=worker.node,
        started=event.at,
        restarts=(*worker.restarts, *([event.at] if ran else ()))[-_REMEMBERED:],
        restart_nodes=(*worker.restart_nodes, *([worker.place] if ran else ()))[-_REMEMBERED:],
        hasty=worker.hasty + again,
        before=worker.exit or worker.reason,
        given_up=worker.given_up,
        retired=worker.retired,
    )


def _link(worker: Worker, event: ev.WorkerLinked) -> Worker:
    before = worker.links.get(event.peer)
    if before is not None and before.incarnation > event.peer_incarnation:
        return worker  # two connections were made at a time, and told in the other order
    link = Link(event.peer_incarnation, event.kind, event.reason)
    return replace(worker, links={**worker.links, event.peer: link})


def _held(detail: Mapping[str, Any], told: frozenset[int]) -> frozenset[int]:
    """What a worker says that it can serve; if it does not say, what it was told to load."""
    parts = [detail.get(key) for key in ("experts", "shadows")]
    lists = [part for part in parts if isinstance(part, list)]
    return frozenset(e for part in lists for e in part) if lists else told


def _report(worker: Worker, event: ev.HoldingReported) -> Worker:
    """The answer to the oldest order, unless it shows that this order is still to be answered."""
    reported, failed, orders = frozenset(event.experts), dict(worker.failed), worker.orders
    if orders and event.error is not None:
        for expert in orders[0].experts:
            times = failed[expert].times if expert in failed else 0
            failed[expert] = Failure(times + 1, event.at)
        orders = orders[1:]
    elif orders and orders[0].done(reported):
        failed = {e: f for e, f in failed.items() if e not in orders[0].experts}
        orders = orders[1:]
    changed = replace(worker, failed=failed, orders=orders)
    return replace(changed, holds=reported - changed.dropping)


def _serving(worker: Worker, at: float) -> Worker:
    """An AW serves once it is ready and routes by the newest table, in whichever order; a CS as
    soon as it is ready.
    """
    routes = 0 < worker.table_applied >= worker.table_sent
    useful = worker.role is Role.CS or (worker.role is Role.AW and routes)
    if worker.phase is Phase.READY and useful:
        return _move(worker, Phase.SERVING, at)
    return worker


def forward(worker: Worker, phase: Phase, at: float) -> Worker:
    """Enter a later phase of the start; a worker that is further on or leaving stays there."""
    if worker.phase in LEAVING or _ORDER.index(worker.phase) >= _ORDER.index(phase):
        return worker
    return _move(worker, phase, at)


def _end(worker: Worker, at: float, reason: str, **known: Any) -> Worker:
    end = Phase.STOPPED if worker.phase is Phase.STOPPING else Phase.DEAD
    empty = replace(worker, holds=frozenset(), orders=(), links={}, awaited=False)
    return _move(empty, end, at, reason=worker.reason or reason, **known)


def _move(worker: Worker, phase: Phase, at: float, **known: Any) -> Worker:
    steady = worker.phase is Phase.SERVING and at - worker.since >= STEADY_S
    hasty = 0 if steady else worker.hasty
    return replace(worker, phase=phase, since=at, hasty=hasty, **known)
