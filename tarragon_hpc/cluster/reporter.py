"""Tells the gateway, the timeline, the log and the metrics what every event means to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, assert_never

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.observe.stories import Stories
from tarragon_hpc.observe.timeline import LOST
from tarragon_hpc.orchestrator import changes as ch
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.coverage import coverage_gap
from tarragon_hpc.orchestrator.state import Phase, RunPhase, State
from tarragon_hpc.orchestrator.status import worker_word

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tarragon_hpc.observe.metrics import HeadMetrics
    from tarragon_hpc.observe.timeline import Timeline

log = logging.getLogger(__name__)


class Gateway(Protocol):
    """What the gateway wants to know (gateway.sessions.Sessions)."""

    def set_serving(self, serving: bool, reason: str) -> None:
        """Whether sequences are admitted, and if not, why."""

    def on_worker_serving(self, worker: str, incarnation: int) -> None:
        """An AW takes sequences."""

    def on_worker_draining(self, worker: str, incarnation: int) -> None:
        """An AW is to leave: it takes nothing new, and others go on with what it runs."""

    def on_worker_silent(self, worker: str, incarnation: int) -> None:
        """An AW that serves is unresponsive."""

    def on_worker_heard(self, worker: str, incarnation: int) -> None:
        """A silent AW is heard again."""

    def on_worker_lost(self, worker: str, incarnation: int, reason: str) -> None:
        """An AW is gone; others go on with its sequences."""


class Reporter:
    """Observes an orchestrator. `serving` is set once the run has started."""

    def __init__(
        self,
        gateway: Gateway,
        timeline: Timeline,
        metrics: HeadMetrics,
        heard: Callable[[], Mapping[Incarnation, float]],
    ) -> None:
        self.serving = asyncio.Event()
        self._gateway = gateway
        self._timeline = timeline
        self._metrics = metrics
        self._heard = heard
        self._stories = Stories()
        timeline.listen(self._follow)

    def _follow(self, line: Mapping[str, Any]) -> None:
        """A line was written into the timeline: measure what it says of failures."""
        for phase, seconds in self._stories.add(line):
            self._metrics.failover_seconds.labels(phase).observe(seconds)

    def observe(self, before: State, after: State, event: ev.Event) -> None:
        """One event: first what it was, then what followed from it."""
        if after.stale > before.stale:
            self._metrics.dropped_messages.inc()
            return
        self._tell(before, after, event)
        for change in ch.diff(before, after):
            match change:
                case ch.AttentionServing():
                    self._gateway.on_worker_serving(change.worker, change.incarnation)
                case ch.AttentionDraining():
                    self._gateway.on_worker_draining(change.worker, change.incarnation)
                case ch.AttentionSilent():
                    self._gateway.on_worker_silent(change.worker, change.incarnation)
                case ch.AttentionHeard():
                    self._gateway.on_worker_heard(change.worker, change.incarnation)
                case ch.AttentionGone():
                    self._gateway.on_worker_lost(change.worker, change.incarnation, change.reason)
                case ch.Availability():
                    self._gateway.set_serving(change.serving, change.reason)
                    if change.serving != ch.availability(before).serving:
                        self._tell_of_admission(change)
                case _:
                    assert_never(change)
        if after.phase is RunPhase.RUNNING and before.phase is RunPhase.STARTING:
            took = round(after.since - before.since, 3)
            self._timeline.record("run serving", took_s=took)
        self._measure(before, after, event)

    def _tell_of_admission(self, change: ch.Availability) -> None:
        if change.serving:
            self.serving.set()
            self._timeline.record("admission opened")
            log.info("admission opened")
        else:
            self._timeline.record("admission closed", reason=change.reason)
            log.info("admission closed: %s", change.reason)

    def _tell(self, before: State, after: State, event: ev.Event) -> None:
        record = self._timeline.record
        match event:
            case ev.TablePublished():
                short, missing = coverage_gap(after)
                record(
                    "table published",
                    epoch=event.epoch,
                    holders=_holders(after),
                    short=short,
                    missing=missing,
                )
            case ev.PlacementChanged():
                record("placement changed", reason=event.reason)
            case ev.WorkerAdded():
                record("worker added", worker=event.worker, reason=event.reason)
            case ev.DrainBegan():
                record("drain began", reason=event.reason, drain_s=event.drain_s)
            case ev.StopBegan():
                record(
                    "stop began",
                    reason=event.reason,
                    failed=event.failed,
                    handover=event.handover,
                )
            case ev.RunEnded():
                record("run ended", reason=after.reason)
            case ev.RunCreated() | ev.HeadChanged():
                pass
            case _:
                self._tell_of_worker(before, after, event)

    def _tell_of_worker(self, before: State, after: State, event: ev.AboutWorker) -> None:
        who = Incarnation(event.worker, event.incarnation)

        def record(what: str, **more: str | int | float | None) -> None:
            self._timeline.record(what, worker=who.worker, incarnation=who.number, **more)

        match event:
            case ev.WorkerStarted():
                record("worker started", pid=event.pid)
            case ev.WorkerQueued() if event.reason:
                expected = event.expected_start or None
                record("worker queued", job=event.job, reason=event.reason, expected_start=expected)
            case ev.WorkerQueued():
                record("worker's job runs", job=event.job)
            case ev.WorkerRegistered():
                record("worker registered", pid=event.pid, host=event.host)
            case ev.WorkerReturned():
                record("worker returned", pid=event.pid, host=event.host)
            case ev.WorkerWelcomed():
                record("worker welcomed")
            case ev.WorkerReady():
                record("worker ready")
            case ev.TableSent():
                record("table sent", epoch=event.epoch)
            case ev.TableTaken():
                record("table taken", epoch=event.epoch)
            case ev.StoresSent():
                stores = sorted(str(Incarnation(*store)) for store in event.stores.items())
                record("stores told", stores=" ".join(stores))
            case ev.WorkerSilent():
                record("worker silent", silent_s=event.silent_s)
            case ev.WorkerHeard():
                record("worker heard again")
            case ev.WorkerSuspected():
                record("worker suspected", by=event.by, reason=event.reason)
            case ev.WorkerCleared():
                record("worker trusted again", by=event.by)
            case ev.FailureMasked():
                record(
                    "failure masked",
                    how=event.how,
                    by=event.by,
                    detected_ago_s=event.detected_ago_s,
                    rerouted_ago_s=event.rerouted_ago_s,
                    answered_ago_s=event.answered_ago_s,
                    pairs=event.pairs,
                )
            case ev.WorkerLinked():
                if event.reason:  # else it is as it should be
                    record("peer linked", peer=event.peer, kind=event.kind, reason=event.reason)
            case ev.LoadAsked():
                record("load asked", experts=ch.ranges(event.experts), reason=event.reason)
            case ev.UnloadAsked():
                record("unload asked", experts=ch.ranges(event.experts), reason=event.reason)
            case ev.HoldingReported():
                record("experts held", experts=ch.ranges(event.experts), error=event.error)
            case ev.WorkerGivenUp():
                log.error("%s is %s", who, event.reason)
                record("worker given up", reason=event.reason)
            case ev.WorkerRetired():
                record("worker retired", reason=event.reason)
            case ev.WorkerDrained():
                record("worker draining", reason=event.reason)
            case ev.WorkerRemoved():
                record("worker removed")
            case ev.WorkerStopAsked():
                record("worker told to stop", reason=event.reason)
            case ev.WorkerLeaving():
                record("worker leaving", reason=event.reason)
            case ev.WorkerNoticed():
                log.warning("%s was given notice: %s", who, event.reason)
                record("worker given notice", reason=event.reason)
            case ev.WorkerFenced():
                record("worker fenced")
            case ev.WorkerLost() | ev.WorkerExited():
                phase = after.workers[who.worker].phase
                if before.workers[who.worker].phase is phase:
                    if isinstance(event, ev.WorkerExited):
                        record("exit known", exit=event.exit)
                    return
                if isinstance(event, ev.WorkerExited):
                    detected, reason = "exit", event.exit
                else:
                    detected, reason = event.how, event.reason
                if phase is Phase.DEAD:
                    log.warning("%s is lost: %s", who, reason)
                last = self._heard().get(who)
                record(
                    LOST if phase is Phase.DEAD else "worker stopped",
                    detected=detected,
                    reason=reason,
                    silent_s=None if last is None else round(time.monotonic() - last, 6),
                )
            case _:
                assert_never(event)

    def _measure(self, before: State, after: State, event: ev.Event) -> None:
        self._metrics.epoch.set(after.epoch)
        for name, worker in after.workers.items():
            was = before.workers.get(name)
            if was is not None and worker.phase is was.phase:
                continue
            if worker.phase is Phase.SERVING:
                took = event.at - worker.started
                self._metrics.start_seconds.labels(worker.role).observe(took)
            if worker.phase is Phase.DEAD:
                self._metrics.lost.labels(worker.role).inc()
        count = Counter((w.role, worker_word(w)) for w in after.workers.values())
        for w in before.workers.values():
            count.setdefault((w.role, worker_word(w)), 0)
        for (role, word), number in count.items():
            self._metrics.workers.labels(role, word).set(number)


def _holders(state: State) -> str:
    """The EWs that the published table names: `ew0.1 ew1.2`."""
    named = sorted({name for holders in state.table for name in holders})
    return " ".join(str(Incarnation(n, state.workers[n].incarnation)) for n in named)
