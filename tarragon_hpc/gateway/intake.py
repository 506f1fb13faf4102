"""What attention workers (AWs) say of sequences: tokens, refusals, failures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import RequestError, Unavailable
from tarragon_hpc.gateway.records import item
from tarragon_hpc.gateway.tokenlog import Verdict
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.gateway.fleet import Fleet
    from tarragon_hpc.gateway.moves import Moves
    from tarragon_hpc.gateway.records import Item
    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.gateway.tally import Tally, Tell
    from tarragon_hpc.wire.common import TokenDelta
    from tarragon_hpc.wire.to_head import Failed, Refused, Resumed, Tokens


class Intake:
    """Only the AW that a sequence was given to last is believed, and only in what it says of that
    attempt. knows: whether a sequence is open.
    """

    def __init__(
        self,
        fleet: Fleet,
        moves: Moves,
        tally: Tally,
        *,
        tell: Tell,
        knows: Callable[[str], bool],
    ) -> None:
        self._fleet = fleet
        self._moves = moves
        self._tally = tally
        self._tell = tell
        self._knows = knows
        self._new: list[Item] = []

    def tokens(self, message: Tokens) -> None:
        """Log what an engine step produced; what is stale, unknown or known is dropped, counted."""
        source = Incarnation(message.worker, message.incarnation)
        for delta in message.items:
            state = self._fleet.find(source, delta.request)
            if state is not None and state.attempt == delta.attempt:
                self._log(state, delta, source)
            else:
                stale = source not in self._fleet or self._knows(delta.request)
                self._tally.dropped["stale" if stale else "unknown"] += 1
        self._write()

    def refused(self, message: Refused) -> None:
        """The mistake is in the request."""
        state = self._fleet.find(Incarnation(message.worker, message.incarnation), message.request)
        if state is not None:
            self._fleet.take(state)
            self._tally.fail(state, RequestError(message.message, param=message.param), "refused")

    def failed(self, message: Failed) -> None:
        """An AW lost sequences through no fault of theirs; others take over if that may help."""
        who = Incarnation(message.worker, message.incarnation)
        found = (self._fleet.find(who, request) for request in message.requests)
        states = [state for state in found if state is not None]
        if message.again:
            self._moves.strand(states, who, message.reason)
            return
        for state in states:
            self._fleet.take(state)
            done = len(state.log.token_ids)
            error = Unavailable(f"{message.reason} ({done} tokens had been generated)")
            self._tally.fail(state, error)

    def resumed(self, message: Resumed) -> None:
        """An AW goes on with a sequence that another one had begun."""
        who = Incarnation(message.worker, message.incarnation)
        item = message.item
        state = self._fleet.find(who, item.request)
        if state is None or state.attempt != item.attempt:
            return
        self._tally.resumed["restored" if item.restored else "recomputed"] += 1
        self._tell(
            "request resumed",
            *who,
            request=item.request,
            id=state.name,
            attempt=item.attempt,
            left=str(state.left),
            restored=item.restored,
            cached=item.cached,
            computed=item.computed,
            nbytes=item.nbytes,
            seconds=round(item.seconds, 6),
            reason=item.reason,
            gap_s=round(state.gap_s(time.monotonic()), 6),
        )

    def _log(self, state: SequenceState, delta: TokenDelta, source: Incarnation) -> None:
        log, had = state.log, len(state.log.token_ids)
        verdict = log.append(delta, time.monotonic())
        if verdict is Verdict.DUPLICATE:
            self._tally.dropped[verdict] += 1
            return
        if verdict is not Verdict.NEW:
            # From the AW that runs the sequence this is a broken AW, not a late message: waiting
            # would be waiting for ever. Not `moved`: what it has stored of it is not trusted.
            self._tally.dropped[verdict] += 1
            self._moves.abort([state])
            reason = f"{source} sent tokens that do not fit ({verdict})"
            self._moves.strand([state], source, reason)
            return
        self._tally.took_in(state, delta, len(log.token_ids) - had)
        if len(log.token_ids) > had:
            state.fruitless = 0
        if log.finish in ("abort", "error"):
            finish = log.finish
            log.end(None)
            self._note(state, delta, had)
            self._write()
            self._moves.strand([state], source, f"the engine of {source} ended it ({finish})")
        elif log.finish is not None:
            self._note(state, delta, had)
            self._fleet.take(state)
            self._tally.finish(state)
        else:
            self._note(state, delta, had)
        state.notify()

    def _note(self, state: SequenceState, delta: TokenDelta, had: int) -> None:
        if state.kept and (len(state.log.token_ids) > had or state.log.finish is not None):
            self._new.append(item(delta, had, state.log))

    def _write(self) -> None:
        """Those who read have been notified, but run later: they see nothing unwritten."""
        new, self._new = self._new, []
        if new and self._tally.notebook is not None:
            self._tally.notebook.produced(new)
