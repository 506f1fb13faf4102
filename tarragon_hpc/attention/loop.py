"""What an AW does from Ready to its end: messages in, steps, messages out. One thread."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import TYPE_CHECKING, Protocol, assert_never

from tarragon_hpc.attention.found import Found, Mail
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.report import Clearance, Failover, Suspicion
from tarragon_hpc.errors import ExpertUnavailable, RequestError
from tarragon_hpc.wire.to_head import (
    Cleared,
    Failed,
    Masked,
    Refused,
    Resumed,
    Suspect,
    TableApplied,
    Tokens,
)
from tarragon_hpc.wire.to_worker import (
    Abort,
    Drain,
    Fence,
    Load,
    Save,
    Shutdown,
    Stores,
    Submit,
    Table,
    Unload,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tarragon_hpc.attention.step import Step
    from tarragon_hpc.datapath.report import Report
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.wire.common import Message, Peer, SamplingSpec

_STATS_EVERY_S = 0.05
# Between two looks at sequences that wait for something that another thread brings.
_IDLE_S = 0.001


class Sequences(Protocol):
    """The engine, as the loop sees it (`engine.Engine`)."""

    @property
    def has_work(self) -> bool: ...
    def add(
        self,
        request: str,
        prompt: Sequence[int],
        sampling: SamplingSpec,
        attempt: int = 1,
        tokens: Sequence[int] = (),
        found: Found | None = None,
    ) -> None: ...
    def abort(self, requests: Iterable[str], *, moved: bool = False) -> None: ...
    def set_stores(self, peers: Sequence[Peer]) -> None: ...
    def look(self, request: str, attempt: int, done: Callable[[Found], None]) -> bool: ...
    def step(self) -> Step: ...
    def stats(self) -> dict[str, float]: ...


class Routes(Protocol):
    """The REFE, as the loop sees it (`datapath.refe.Refe`)."""

    stats: RefeStats

    @property
    def epoch(self) -> int: ...
    def apply_table(self, ert: ERT, peers: Mapping[str, Peer]) -> dict[str, str]: ...


class ServingLoop:
    """Serves until it is told to leave. `publish` gets a fresh dict of numbers now and then."""

    def __init__(
        self,
        who: Incarnation,
        engine: Sequences,
        refe: Routes,
        inbox: queue.SimpleQueue[Mail],
        send: Callable[[Message], None],
        publish: Callable[[dict[str, float]], None],
    ) -> None:
        self._who = who
        self._engine = engine
        self._refe = refe
        self._inbox = inbox
        self._send = send
        self._publish = publish
        self._kept: list[Mail] = []
        self._looking: dict[str, Submit] = {}
        self._draining: str | None = None
        self._leaving: str | None = None
        self._measured = 0.0

    def run(self) -> str:
        """Serve; returns why it ended. With Drain, what runs is finished first."""
        while self._leaving is None:
            idle = not self._engine.has_work
            if idle and self._draining is not None and not self._looking:
                return self._draining
            self._measure(due=idle)
            kept, self._kept = self._kept, []
            for message in kept + self._messages(wait=idle and not kept):
                self._handle(message)
            if self._leaving is None and self._engine.has_work:
                self._step()
        return self._leaving

    def _messages(self, *, wait: bool) -> list[Mail]:
        """All that has come; with `wait`, sleeps until something has."""
        messages = [self._inbox.get()] if wait else []
        try:
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    def _handle(self, message: Mail) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Found():
                self._found(message)
            case Abort():
                for request in message.requests:
                    self._looking.pop(request, None)
                self._engine.abort(message.requests, moved=message.moved)
            case Stores():
                self._engine.set_stores(message.peers)
            case Table():
                self._apply(message)
            case Drain():
                self._draining = self._draining or message.reason
            case Shutdown():
                self._leaving = message.reason
            case Welcome() | Fence() | Load() | Unload() | Save():
                pass  # heard elsewhere, or not for an AW
            case _:
                assert_never(message)

    def _submit(self, message: Submit) -> None:
        request = message.request
        if self._draining is not None:
            self._fail([request], f"{self._who.worker} takes no more requests: {self._draining}")
        elif not self._refe.epoch:
            self._fail([request], f"{self._who.worker} has no routing table yet")
        elif message.attempt > 1 and self._engine.look(request, message.attempt, self._inbox.put):
            self._looking[request] = message
        else:
            self._add(message, None)

    def _found(self, found: Found) -> None:
        """The stores have said what they keep of a sequence that was begun elsewhere."""
        message = self._looking.get(found.request)
        if message is not None and message.attempt == found.attempt:
            del self._looking[found.request]
            self._add(message, found)

    def _add(self, submit: Submit, found: Found | None) -> None:
        s = submit
        try:
            self._engine.add(s.request, s.prompt, s.sampling, s.attempt, s.tokens, found)
        except RequestError as error:
            self._refuse(s.request, error)

    def _apply(self, table: Table) -> None:
        peers = {peer.worker: peer for peer in table.peers}
        self._refe.apply_table(ERT.of(table.epoch, table.candidates), peers)
        self._send(TableApplied(*self._who, table.epoch))

    def _step(self) -> None:
        step = self._engine.step()
        for request, error in step.refused.items():
            self._refuse(request, error)
        for resumption in step.resumed:
            self._send(Resumed(*self._who, resumption))
        if step.tokens:
            self._send(Tokens(*self._who, step.tokens))
        if step.loss is not None:
            # An expert that nobody has served for so long is missing on every AW.
            again = not isinstance(step.loss, ExpertUnavailable)
            self._fail(step.failed, str(step.loss), again=again)
        if step.idle:
            with contextlib.suppress(queue.Empty):
                self._kept.append(self._inbox.get(timeout=_IDLE_S))

    def _refuse(self, request: str, error: RequestError) -> None:
        self._send(Refused(*self._who, request, str(error), error.param))

    def _fail(self, requests: list[str], reason: str, *, again: bool = True) -> None:
        if requests:
            self._send(Failed(*self._who, requests, reason, again))

    def report(self, report: Report) -> None:
        """The REFE says something about an EW: tell the head, which decides what is lost."""
        match report:
            case Suspicion():
                message: Message = Suspect(
                    *self._who, report.peer, report.incarnation, report.reason
                )
            case Clearance():
                message = Cleared(*self._who, report.peer, report.incarnation)
            case Failover():
                now = time.monotonic()
                message = Masked(
                    *self._who,
                    report.peer,
                    report.incarnation,
                    report.how,
                    now - report.detected,
                    now - report.rerouted,
                    now - report.answered,
                    report.pairs,
                )
            case _:
                assert_never(report)
        self._send(message)

    def poll(self) -> str | None:
        """In the middle of a step that waits for an expert: take new tables, keep the rest.

        Returns why the step should be given up, or None.
        """
        for message in self._messages(wait=False):
            if isinstance(message, Table):
                self._apply(message)
            else:
                self._kept.append(message)
        leaving = [m.reason for m in self._kept if isinstance(m, Shutdown)]
        return leaving[0] if leaving else None

    def _measure(self, *, due: bool) -> None:
        now = time.monotonic()
        if due or now - self._measured > _STATS_EVERY_S:
            self._measured = now
            self._publish(self._engine.stats() | self._refe.stats.snapshot())
