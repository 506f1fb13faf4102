"""Gives sequences to attention workers (AWs), and to others when theirs cannot go on with them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import Unavailable
from tarragon_hpc.gateway import failover
from tarragon_hpc.wire.to_worker import Abort, Submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tarragon_hpc.gateway.fleet import Fleet
    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.gateway.tally import Tally
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.wire.to_worker import ToWorker


class Moves:
    """Sequences on their way from one AW to another; those that find none wait here.

    send: queues a message for an AW; never waits. timeout_s: the longest wait. why: says why no AW
    takes sequences. Needs a running event loop while something waits; owns one timer of it.
    """

    def __init__(
        self,
        fleet: Fleet,
        send: Callable[[str, ToWorker], None],
        tally: Tally,
        *,
        timeout_s: float,
        why: Callable[[], str | None],
    ) -> None:
        self.moved = 0
        self._fleet = fleet
        self._send = send
        self._tally = tally
        self._timeout_s = timeout_s
        self._why = why
        self._waiting: dict[str, SequenceState] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Moves({len(self._waiting)} waiting, {self.moved} moved)"

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, state: SequenceState) -> bool:
        return state.request in self._waiting

    def waiting(self) -> list[SequenceState]:
        """The sequences that wait."""
        return list(self._waiting.values())

    def begin(self, state: SequenceState) -> None:
        """Give a new sequence to the AW with the fewest; it waits if none serves."""
        state.waits = state.stalled = state.opened
        self._waiting[state.request] = state
        self.settle()

    def abort(self, states: Iterable[SequenceState]) -> None:
        """Nobody is to run these any more. Those that have ended are left alone."""
        by_worker: dict[str, list[str]] = {}
        for state in states:
            self._waiting.pop(state.request, None)
            if state.owner is not None:
                by_worker.setdefault(state.owner.worker, []).append(state.request)
                self._fleet.take(state)
        for worker, requests in by_worker.items():
            self._send(worker, Abort(requests))

    def strand(
        self,
        states: Sequence[SequenceState],
        left: Incarnation,
        reason: str,
        *,
        fruitless: bool = True,
    ) -> int:
        """An AW does not run these any more; others take over. Returns how many have to wait.

        fruitless: it counts against a sequence if it has produced nothing since it was given to
        that AW (see `failover.is_hopeless`).
        """
        now = time.monotonic()
        for state in states:
            self._fleet.take(state)
            state.left, state.reason = left, reason
            state.stalled, state.waits = state.progressed, now
            state.fruitless += fruitless
            if state.full:
                # All it lacked is the word that it was done.
                self._tally.fill(state)
            elif failover.is_hopeless(state):
                self._fail(
                    state,
                    f"{reason}; interrupted {state.fruitless} times in a row without a new token,"
                    " so it is not tried again: it may itself be the cause",
                )
            else:
                self._waiting[state.request] = state
        self.settle()
        return sum(state in self for state in states)

    def evacuate(
        self, left: Incarnation, reason: str, *, fruitless: bool
    ) -> tuple[int, int] | None:
        """Move everything away from an AW that still runs it, if another one can take it.

        Returns how many sequences that were and how many of them wait; None if nothing was moved.
        """
        states = self._fleet.on(left)
        if not states or not self._fleet.load().keys() - {left}:
            return None
        self._send(left.worker, Abort([state.request for state in states], moved=True))
        return len(states), self.strand(states, left, reason, fruitless=fruitless)

    def settle(self) -> None:
        """Something has changed: give what waits to AWs, end what has waited for too long."""
        now, load = time.monotonic(), self._fleet.load()
        for state, who in failover.place(self._waiting.values(), load, now):
            del self._waiting[state.request]
            self._give(state, who)
        for state in self.waiting():
            if failover.is_overdue(state, now, self._timeout_s):
                del self._waiting[state.request]
                self._fail(
                    state,
                    f"{state.reason}; waited {now - state.waits:.1f} s for another attention"
                    f" worker: {self._why() or 'none took it'}",
                )
        self._look_again(self._waiting.values(), now)

    def _give(self, state: SequenceState, who: Incarnation) -> None:
        state.attempt += 1
        self.moved += state.attempt > 1  # of a restored one even the first one is a move
        self._fleet.give(state, who)
        # The log grows while the message may still be in a queue.
        tokens = list(state.log.token_ids)
        submit = Submit(state.request, state.prompt, state.sampling, state.attempt, tokens)
        self._send(who.worker, submit)

    def _fail(self, state: SequenceState, why: str) -> None:
        done = len(state.log.token_ids)
        self._tally.fail(state, Unavailable(f"{why} ({done} tokens had been generated)"))

    def _look_again(self, waiting: Iterable[SequenceState], now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay_s = failover.next_look_s(waiting, self._fleet.load(), now, self._timeout_s)
        if delay_s is not None:
            # A little late is on time; a little early is once more.
            self._timer = asyncio.get_running_loop().call_later(delay_s + 0.001, self.settle)
