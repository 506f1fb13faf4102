"""Who runs which sequence, and what each has produced. The head reports, the HTTP side reads.

Everything here runs in one event loop and nothing waits but `drain`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

from tarragon_hpc.errors import Overloaded, RequestError, TarragonError, Unavailable
from tarragon_hpc.gateway.balance import choose_worker
from tarragon_hpc.gateway.handle import Handle
from tarragon_hpc.gateway.state import SequenceState, SessionStats
from tarragon_hpc.gateway.tokenlog import TokenLog, Verdict
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire.to_worker import Abort, Submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tarragon_hpc.wire.common import SamplingSpec, TokenDelta
    from tarragon_hpc.wire.to_head import Failed, Refused, Resumed, Tokens
    from tarragon_hpc.wire.to_worker import ToWorker


class Sessions:
    """The sequences of the service.

    send: queues a message for an AW; never waits, and may drop it if the AW is gone (the loss is
    reported by `on_worker_lost`).
    """

    def __init__(self, send: Callable[[str, ToWorker], None], max_requests: int) -> None:
        self.max_requests = max_requests
        self._send = send
        self._open: dict[str, SequenceState] = {}
        self._running: dict[Incarnation, dict[str, SequenceState]] = {}
        self._newest: dict[str, int] = {}
        self._leaving: set[Incarnation] = set()
        self._serving = False
        self._reason = "starting"
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._tokens = 0
        self._masked = 0
        self._longest_gap_s = 0.0
        self._ended: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._resumed: Counter[str] = Counter()

    def __repr__(self) -> str:
        state = "draining" if self._draining else "serving" if self._serving else self._reason
        return f"Sessions({state}, open={len(self._open)}, workers={list(map(str, self._running))})"

    # The HTTP side.

    def unavailable(self) -> str | None:
        """Why nothing can be opened now, or None."""
        if self._draining:
            return "the service is stopping"
        if not self._serving:
            return self._reason
        return None if self._running.keys() - self._leaving else "no attention worker is serving"

    def check_count(self, count: int) -> None:
        """Raises RequestError if so many sequences could never be open at once."""
        if count > self.max_requests:
            raise RequestError(
                f"n: at most {self.max_requests} sequences (prompts × n) may be in one request",
                param="n",
            )

    def open(self, work: Sequence[tuple[list[int], SamplingSpec]]) -> Handle:
        """Start sequences of (prompt token ids, sampling), all of them or none.

        Raises Unavailable, Overloaded (`max_requests` sequences are open), and what `check_count`
        raises. The ids must have been validated.
        """
        if (why := self.unavailable()) is not None:
            raise Unavailable(why)
        self.check_count(len(work))
        if len(self._open) + len(work) > self.max_requests:
            raise Overloaded(
                f"{len(self._open)} sequences are open and at most {self.max_requests} may be;"
                " try again later"
            )
        states = [
            SequenceState(
                request=f"{self._prefix}-{next(self._numbers)}",
                prompt=prompt,
                sampling=sampling,
                owner=None,
                log=TokenLog(with_logprobs=sampling.logprobs is not None),
            )
            for prompt, sampling in work
        ]
        handle = Handle(states, self._release)
        for state in states:
            self._open[state.request] = state
            self._idle.clear()
            self._assign(state)
        return handle

    async def drain(self, timeout_s: float) -> int:
        """Admit nothing more, wait until all ends have been read; then cut and count the rest."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            running = [s for on in self._running.values() for s in on.values()]
            self._abort(running)
            for state in running:
                self._fail(state, Unavailable("the service stopped before the request was done"))
            return len(running)
        return 0

    # The head.

    def set_serving(self, serving: bool, reason: str) -> None:
        """Whether requests are admitted; `reason` is told to clients if not."""
        self._serving, self._reason = serving, reason

    def on_worker_serving(self, worker: str, incarnation: int) -> None:
        """This AW takes sequences from now on; its older incarnations are lost by that.

        Ignored if the incarnation has served before: a lost one does not come back.
        """
        newest = self._newest.get(worker, 0)
        if incarnation <= newest:
            return
        new = Incarnation(worker, incarnation)
        self._newest[worker] = incarnation
        self.on_worker_lost(worker, newest, f"replaced by {new}")
        self._running[new] = {}

    def on_worker_draining(self, worker: str, incarnation: int) -> None:
        """This AW finishes what it runs; it is given nothing new. Unknown ones are ignored."""
        who = Incarnation(worker, incarnation)
        if who in self._running:
            self._leaving.add(who)

    def on_worker_lost(self, worker: str, incarnation: int, reason: str) -> None:
        """This AW is gone, and what it ran with it. Unknown incarnations are ignored."""
        who = Incarnation(worker, incarnation)
        self._leaving.discard(who)
        lost = self._running.pop(who, {})
        for state in list(lost.values()):
            self._interrupted(state, f"attention worker {worker} was lost: {reason}")

    def on_tokens(self, message: Tokens) -> None:
        """Log what an engine step produced; what is stale, unknown or known is dropped, counted."""
        source = Incarnation(message.worker, message.incarnation)
        mine = self._running.get(source)
        if mine is None:
            self._dropped["stale"] += len(message.items)
            return
        for delta in message.items:
            state = mine.get(delta.request)
            if state is None:
                self._dropped["stale" if delta.request in self._open else "unknown"] += 1
            else:
                self._log(state, delta, source)

    def on_refused(self, message: Refused) -> None:
        """An AW refuses a sequence: the mistake is in the request."""
        state = self._owned(message.worker, message.incarnation, message.request)
        if state is not None:
            self._leave(state)
            self._fail(state, RequestError(message.message, param=message.param), "refused")

    def on_failed(self, message: Failed) -> None:
        """An AW lost sequences through no fault of theirs."""
        for request in message.requests:
            state = self._owned(message.worker, message.incarnation, request)
            if state is not None:
                self._leave(state)
                self._interrupted(state, message.reason)

    def on_resumed(self, message: Resumed) -> None:
        """An AW goes on with a sequence that another one had begun."""
        if self._owned(message.worker, message.incarnation, message.request) is not None:
            self._resumed["restored" if message.restored else "recomputed"] += 1

    def stats(self) -> SessionStats:
        """What `status` and `/metrics` show."""
        running_on = {i.worker: len(on) for i, on in self._running.items()}
        why = self.unavailable()
        return SessionStats(
            serving=why is None,
            reason=why or "serving",
            open=len(self._open),
            running=sum(running_on.values()),
            tokens=self._tokens,
            ended=dict(self._ended),
            dropped=dict(self._dropped),
            running_on=running_on,
            masked=self._masked,
            longest_gap_s=self._longest_gap_s,
        )

    # One sequence.

    def _assign(self, state: SequenceState) -> None:
        """Give a sequence to the AW that is chosen for it, or end it if there is none."""
        open_to = {i: len(on) for i, on in self._running.items() if i not in self._leaving}
        by_worker = {i.worker: i for i in open_to}
        worker = choose_worker({i.worker: running for i, running in open_to.items()})
        if worker is None:
            self._fail(state, Unavailable("no attention worker is serving"))
            return
        state.owner = by_worker[worker]
        self._running[state.owner][state.request] = state
        self._send(worker, Submit(state.request, state.prompt, state.sampling))

    def _interrupted(self, state: SequenceState, reason: str) -> None:
        """The AW no longer runs this sequence, which is not its fault. Its handle is still read.

        The state holds what another AW would need (prompt, sampling, token log), so this is where
        a sequence could be `_assign`ed anew; for now it ends with an error that says why.
        """
        done = len(state.log.token_ids)
        self._fail(state, Unavailable(f"{reason} ({done} tokens had been generated)"))

    def _log(self, state: SequenceState, delta: TokenDelta, source: Incarnation) -> None:
        had = len(state.log.token_ids)
        verdict = state.log.append(delta, time.monotonic())
        if verdict is Verdict.DUPLICATE:
            self._dropped[verdict] += 1
        elif verdict is not Verdict.NEW:
            # From the AW that owns the sequence this is a broken AW, not a late message: waiting
            # would be waiting for ever.
            self._dropped[verdict] += 1
            self._abort([state])
            self._interrupted(state, f"{source} sent tokens that do not fit ({verdict})")
        else:
            self._tokens += len(state.log.token_ids) - had
            self._masked += delta.masked
            self._longest_gap_s = max(self._longest_gap_s, state.log.gap_s or 0.0)
            if state.log.finish in ("abort", "error"):
                finish, state.log.finish = state.log.finish, None
                self._leave(state)
                self._interrupted(state, f"the engine of {source} ended it ({finish})")
            elif state.log.finish is not None:
                self._leave(state)
                self._ended["finished"] += 1
            state.notify()

    def _fail(self, state: SequenceState, error: TarragonError, how: str = "failed") -> None:
        state.owner = None
        state.error = error
        self._ended[how] += 1
        state.notify()

    def _leave(self, state: SequenceState) -> None:
        """The AW has nothing more to do for it."""
        if state.owner is not None:
            self._running.get(state.owner, {}).pop(state.request, None)
            state.owner = None

    def _abort(self, states: Iterable[SequenceState]) -> None:
        by_worker: dict[str, list[str]] = {}
        for state in states:
            if state.owner is not None:
                by_worker.setdefault(state.owner.worker, []).append(state.request)
                self._leave(state)
        for worker, requests in by_worker.items():
            self._send(worker, Abort(requests))

    def _release(self, states: list[SequenceState]) -> None:
        """A handle is through with these: abort what runs, forget all."""
        running = [state for state in states if state.owner is not None]
        if running:
            self._abort(running)
            self._ended["aborted"] += len(running)
        for state in states:
            self._open.pop(state.request, None)
        if not self._open:
            self._idle.set()

    def _owned(self, worker: str, incarnation: int, request: str) -> SequenceState | None:
        return self._running.get(Incarnation(worker, incarnation), {}).get(request)
