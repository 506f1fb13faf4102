"""Who runs which sequence, and what each has produced. The head reports, the HTTP side reads.

Everything here runs in one event loop and nothing waits but `drain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import HandingOver, Overloaded, RequestError, Unavailable
from tarragon_hpc.gateway.fleet import Fleet
from tarragon_hpc.gateway.handle import Handle
from tarragon_hpc.gateway.intake import Intake
from tarragon_hpc.gateway.moves import Moves
from tarragon_hpc.gateway.ordered import OrderedHandle
from tarragon_hpc.gateway.restore import restore
from tarragon_hpc.gateway.state import SequenceState, SessionStats
from tarragon_hpc.gateway.tally import Tally, tell_nobody
from tarragon_hpc.gateway.tokenlog import TokenLog
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tarragon_hpc.gateway.records import Kept
    from tarragon_hpc.gateway.tally import Notebook, Tell
    from tarragon_hpc.wire.common import SamplingSpec
    from tarragon_hpc.wire.to_head import Failed, Refused, Resumed, Tokens
    from tarragon_hpc.wire.to_worker import ToWorker


class Sessions:
    """The sequences of the service.

    send: queues a message for an AW; never waits, and may drop it if the AW is gone (the loss is
    reported by `on_worker_lost`). failover_timeout_s: how long a sequence waits for another AW
    once its own was lost and none serves. tell: is told "requests moved" (count, waiting, reason)
    of the AW that sequences were taken from, and "request resumed" of the one that goes on.
    notebook: is told what becomes of sequences that are kept.
    """

    def __init__(
        self,
        send: Callable[[str, ToWorker], None],
        max_requests: int,
        *,
        failover_timeout_s: float = 60.0,
        tell: Tell | None = None,
        notebook: Notebook | None = None,
    ) -> None:
        self.max_requests = max_requests
        self._tell = tell or tell_nobody
        self._open: dict[str, SequenceState] = {}
        self._tally = Tally(notebook)
        self._held: list[SequenceState] = []
        self.served = asyncio.Event()
        self._fleet = Fleet()
        self._moves = Moves(
            self._fleet, send, self._tally, timeout_s=failover_timeout_s, why=self.unavailable
        )
        self._intake = Intake(
            self._fleet, self._moves, self._tally, tell=self._tell, knows=self._open.__contains__
        )
        self._serving = False
        self._reason = "starting"
        self._draining = False
        self._handover: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        state = "draining" if self._draining else "serving" if self._serving else self._reason
        return f"Sessions({state}, open={len(self._open)}, {self._fleet}, {self._moves})"

    # The HTTP side.

    def unavailable(self) -> str | None:
        """Why nothing can be opened now, or None."""
        if self._handover is not None:
            return f"{self._handover}; come back later: the service goes on after that"
        if self._draining:
            return "the service is stopping"
        return self._fleet.why_none() if self._serving else self._reason

    @property
    def handing_over(self) -> bool:
        """Another head is to go on: what is cut from now on has not come to its end."""
        return self._handover is not None

    def hand_over(self, reason: str) -> None:
        """Admit nothing more, since this head ends and another goes on."""
        self._handover = reason

    def check_count(self, count: int) -> None:
        """Raises RequestError if so many sequences could never be open at once."""
        if count > self.max_requests:
            raise RequestError(
                f"n: at most {self.max_requests} sequences (prompts × n) may be in one request",
                param="n",
            )

    def open(
        self,
        work: Sequence[tuple[list[int], SamplingSpec]],
        name: str = "",
        *,
        kept: bool = False,
        ordered: bool = False,
    ) -> Handle:
        """Start sequences of (prompt token ids, sampling), all of them or none.

        name: what the client calls their answer, for the timeline. kept: the notebook is told of
        them. ordered: the deltas follow from the tokens alone. Raises Unavailable, Overloaded
        (`max_requests` sequences are open), and what `check_count` raises. The ids must have been
        validated.
        """
        if (why := self.unavailable()) is not None:
            raise HandingOver(why) if self.handing_over else Unavailable(why)
        self.check_count(len(work))
        if len(self._open) + len(work) > self.max_requests:
            raise Overloaded(
                f"{len(self._open)} sequences are open and at most {self.max_requests} may be;"
                " try again later"
            )
        now = time.monotonic()
        states = [
            SequenceState(
                request=f"{self._prefix}-{next(self._numbers)}",
                prompt=prompt,
                sampling=sampling,
                name=name,
                opened=now,
                log=TokenLog(with_logprobs=sampling.logprobs is not None),
                kept=kept,
            )
            for prompt, sampling in work
        ]
        handle = (OrderedHandle if ordered else Handle)(states, self._release)
        for state in states:
            self._open[state.request] = state
            self._idle.clear()
            self._moves.begin(state)
        return handle

    def reopen(self, kept: Kept, first_attempt: int, *, ordered: bool) -> Handle:
        """Go on with the sequences of a request that an earlier head had opened.

        Those that lack something wait for an AW without limit until the service serves for the
        first time. Their attempts come after `first_attempt`, so that what that head's AWs and the
        checkpoint stores still have of older ones is told apart. There may be more of them than
        `max_requests`: they had been admitted.
        """
        states = restore(kept, first_attempt)
        handle = (OrderedHandle if ordered else Handle)(states, self._release)
        for state in states:
            self._open[state.request] = state
            self._idle.clear()
            if state.full and state.log.finish is None and state.error is None:
                self._tally.fill(state)
            if state.log.finish is None and state.error is None and not state.stopped:
                self._held.append(state)
            state.notify()
        self._let_go()
        return handle

    async def drain(self, timeout_s: float) -> int:
        """Admit nothing more, wait until all ends have been read; then cut and count the rest."""
        return 0 if await self.quiet(timeout_s) else self.cut()

    async def quiet(self, timeout_s: float) -> bool:
        """Admit nothing more, wait until all ends have been read; whether they were."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def cut(self) -> int:
        """End and count what runs, or waits for an AW."""
        rest = [*self._fleet.everything(), *self._moves.waiting(), *self._held]
        self._held.clear()
        self._moves.abort(rest)
        for state in rest:
            self._tally.fail(state, self._last_words())
        return len(rest)

    def _last_words(self) -> Unavailable:
        """What is said to requests that could not be finished."""
        if self._handover is None:
            return Unavailable("the service stopped before the request was done")
        return HandingOver(f"{self._handover}; ask again: the service goes on after that")

    # The head, about AWs. What is said of unknown incarnations is ignored.

    def set_serving(self, serving: bool, reason: str) -> None:
        """Whether requests are admitted; `reason` is told to clients if not."""
        self._serving, self._reason = serving, reason
        self._let_go()

    def on_worker_serving(self, worker: str, incarnation: int) -> None:
        """This AW takes sequences from now on; its older incarnations are lost by that.

        Ignored if the incarnation has served before: a lost one does not come back.
        """
        new = Incarnation(worker, incarnation)
        if self._fleet.join(new):
            for old in self._fleet.before(new):
                self.on_worker_lost(*old, f"replaced by {new}")
            self._more_room()

    def on_worker_draining(self, worker: str, incarnation: int) -> None:
        """This AW is to leave: others go on with what it runs; it finishes it if there are none."""
        who = Incarnation(worker, incarnation)
        if who in self._fleet:
            self._fleet.leaving(who)
            self._evacuate(who, f"attention worker {worker} is leaving", fruitless=False)

    def on_worker_silent(self, worker: str, incarnation: int) -> None:
        """This AW may be dead or stopped: others go on with what it runs, as soon as there are any.

        Its connection stands, but it is given nothing until `on_worker_heard`.
        """
        who = Incarnation(worker, incarnation)
        if who in self._fleet:
            self._fleet.silent(who)
            self._flee(who)

    def on_worker_heard(self, worker: str, incarnation: int) -> None:
        """A silent AW is alive after all. What it still runs it goes on with."""
        who = Incarnation(worker, incarnation)
        if who in self._fleet:
            self._fleet.heard(who)
            self._more_room()

    def on_worker_lost(self, worker: str, incarnation: int, reason: str) -> None:
        """This AW is gone; what it ran goes on elsewhere."""
        who = Incarnation(worker, incarnation)
        lost = self._fleet.remove(who)
        if lost:
            reason = f"attention worker {worker} was lost: {reason}"
            self._tell_moved(who, reason, len(lost), self._moves.strand(lost, who, reason))

    # The head, about sequences.

    def on_tokens(self, message: Tokens) -> None:
        """What an engine step produced. What is stale, unknown or known is dropped, counted."""
        self._intake.tokens(message)

    def on_refused(self, message: Refused) -> None:
        """An AW refuses a sequence: the mistake is in the request."""
        self._intake.refused(message)

    def on_failed(self, message: Failed) -> None:
        """An AW lost sequences through no fault of theirs; others take over if that may help."""
        self._intake.failed(message)

    def on_resumed(self, message: Resumed) -> None:
        """An AW goes on with a sequence that another one had begun."""
        self._intake.resumed(message)

    def stats(self) -> SessionStats:
        """What `status` and `/metrics` show."""
        running_on = self._fleet.running_on()
        why = self.unavailable()
        tally = self._tally
        return SessionStats(
            serving=why is None,
            reason=why or "serving",
            open=len(self._open),
            running=sum(running_on.values()),
            tokens=tally.tokens,
            ended=dict(tally.ended),
            dropped=dict(tally.dropped),
            running_on=running_on,
            masked=tally.masked,
            longest_gap_s=tally.longest_gap_s,
            moved=self._moves.moved,
            restored=tally.resumed["restored"],
            recomputed=tally.resumed["recomputed"],
            waiting=len(self._moves),
        )

    def _more_room(self) -> None:
        """An AW takes sequences: those that wait, and those of AWs that are silent."""
        self._let_go()
        self._moves.settle()
        for who in self._fleet.mute():
            self._flee(who)

    def _let_go(self) -> None:
        """The first time that the service serves: what was held until then may run."""
        if not self.served.is_set():
            if self.unavailable() is not None:
                return
            self.served.set()
        held, self._held = self._held, []
        for state in held:
            state.opened = time.monotonic()
            self._moves.begin(state)

    def _flee(self, who: Incarnation) -> None:
        self._evacuate(who, f"attention worker {who.worker} is silent", fruitless=True)

    def _evacuate(self, who: Incarnation, reason: str, *, fruitless: bool) -> None:
        moved = self._moves.evacuate(who, reason, fruitless=fruitless)
        if moved is not None:
            self._tell_moved(who, reason, *moved)

    def _tell_moved(self, who: Incarnation, reason: str, count: int, waiting: int) -> None:
        self._tell("requests moved", *who, count=count, waiting=waiting, reason=reason)

    def _release(self, states: list[SequenceState]) -> None:
        """A handle is through with these: abort what runs, forget all."""
        rest = [s for s in states if s.owner is not None or s in self._moves or s in self._held]
        if rest:
            self._held = [s for s in self._held if s not in rest]
            self._moves.abort(rest)
            self._tally.ended["aborted"] += len(rest)
        for state in states:
            if self._open.pop(state.request, None) is not None and state.stopped:
                self._tally.stopped(state)
        if not self._open:
            self._idle.set()
