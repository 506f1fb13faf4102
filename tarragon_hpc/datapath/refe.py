"""The reconfigurable forwarding engine (REFE) of an AW (paper §4.2): rows out, rows back.

One engine thread owns it. `dispatch` sends, `combine` waits and sums; what lies between them (the
shared experts, say) overlaps the round trip. More rows than a slot takes go in several chunks, as
many at once as there are slots; the rest follows inside `combine` as replies free the slots.

Several tickets may be open at a time, first dispatched, first combined; they share the slots, so a
later one sends only once the earlier ones have sent everything, and what slots they left.

An EW that fails meanwhile is masked (healer.py): the sums are the same bits, only later.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.datapath.combine import STORAGE
from tarragon_hpc.datapath.exchange import Exchange
from tarragon_hpc.datapath.healer import Healer
from tarragon_hpc.datapath.health import Health, Patience
from tarragon_hpc.datapath.lane import FastLane, make_lane
from tarragon_hpc.datapath.links import Links
from tarragon_hpc.datapath.peers import Peers
from tarragon_hpc.datapath.probes import Probes
from tarragon_hpc.datapath.routes import Routes, make_routes
from tarragon_hpc.datapath.stats import RefeStats
from tarragon_hpc.datapath.ticket import Chunk, Ticket
from tarragon_hpc.errors import ExpertUnavailable
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.dial import in_a_thread
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.parse import address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.datapath.ert import ERT
    from tarragon_hpc.datapath.report import Report
    from tarragon_hpc.transport.base import Connector, Doorbell
    from tarragon_hpc.wire.common import Peer


class Refe:
    """Forwards the rows of one AW's MoE layers to the EWs and back.

    worker, incarnation: of this AW; bell: its doorbell, the connector's own
    experts, top_k, hidden: of the model's MoE layers; dtype: of rows in and out
    slots, slot_rows: slots per EW and rows per slot (configuration, section transport)
    patience: when a reply is overdue; probe_s, probe_misses: when an EW is silent
    reply_timeout_s: when an EW is given up that does not answer
    mask: leave out experts that nobody serves, instead of waiting for up to `missing_timeout_s`
    report: told of failing EWs, in the engine thread
    poll: called while rows wait for an expert that nobody serves; it may call `apply_table`, and
        returns a reason to give up waiting, or None
    spawn: runs a job in the background (making a connection)
    clock: monotonic seconds

    A TransportError gives the ticket concerned up and leaves the Refe usable.
    """

    def __init__(
        self,
        *,
        worker: str,
        incarnation: int,
        connector: Connector,
        bell: Doorbell,
        experts: int,
        top_k: int,
        hidden: int,
        dtype: str,
        slots: int = 4,
        slot_rows: int = 256,
        patience: Patience | None = None,
        probe_s: float = 0.01,
        probe_misses: int = 3,
        reply_timeout_s: float = 10.0,
        mask: bool = False,
        missing_timeout_s: float = 60.0,
        report: Callable[[Report], None] = lambda report: None,
        poll: Callable[[], str | None] = lambda: None,
        spawn: Callable[[Callable[[], None]], None] = in_a_thread,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.stats = RefeStats()
        self.report = report
        self.poll = poll
        itemsize = wire.DTYPES[dtype][1]
        self.geometry = Geometry(
            slots, *wire.slot_geometry(slot_rows, top_k, experts, hidden, itemsize)
        )
        self.links = Links(connector, self.geometry, bell, spawn=spawn)
        self._experts, self._top_k, self._hidden, self._dtype = experts, top_k, hidden, dtype
        self._storage = STORAGE[dtype]
        self._slot_rows = slot_rows
        self._bell = bell
        self._timeout_s = reply_timeout_s
        self._clock = clock
        self._health = Health(patience or Patience())
        self._exchange = Exchange(
            self.links,
            self.stats,
            self._health,
            incarnation=incarnation,
            top_k=top_k,
            hidden=hidden,
            dtype=dtype,
            timeout_s=reply_timeout_s,
            clock=clock,
        )
        self._peers = Peers(
            self.links,
            self._health,
            Probes(probe_s, probe_misses),
            self.stats,
            report=lambda report: self.report(report),
            reroute=self._route,
            clock=clock,
        )
        self._healer = Healer(
            self._peers,
            self._exchange,
            self.stats,
            mask=mask,
            missing_timeout_s=missing_timeout_s,
            reply_timeout_s=reply_timeout_s,
            clock=clock,
        )
        self._routes: Routes | None = None
        self._lane: FastLane | None = None
        self._open: list[Ticket] = []
        self._masked: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"Refe({self.worker}.{self.incarnation}, epoch {self.epoch}, {self.links})"

    @property
    def epoch(self) -> int:
        """Epoch of the routing table in use; 0 before the first."""
        return self._healer.ert.epoch if self._healer.ert else 0

    def apply_table(self, ert: ERT, peers: Mapping[str, Peer]) -> dict[str, str]:
        """Route by this table from now on; connects and drops EWs as it says.

        Returns the EWs of the table that cannot be used yet, with the reason: their experts go to
        the next candidates, or wait. The first table connects to all before this returns; later
        ones in the background, so that nobody is kept waiting by an EW that joins. A table older
        than the one in use changes nothing. Between steps, or from `poll`.
        """
        if len(ert.candidates) != self._experts:
            raise ValueError(f"table of {len(ert.candidates)} experts, expected {self._experts}")
        if ert.epoch >= self.epoch:
            first = self.epoch == 0
            for ticket in self._open:
                if ticket.lane is not None:
                    ticket.lane.hand_over(ticket)
            self._healer.ert = ert
            self._peers.follow(ert.workers, peers, wait=first)
        return self.down()

    def down(self) -> dict[str, str]:
        """The EWs of the table that take no work at the moment, and why."""
        return self._peers.lost()

    def take_masked(self) -> NDArray[np.int64] | None:
        """How many (layer, expert) calls of each row were left out since the last call, for the
        rows of the dispatches since then, which must all have been of the same rows; None: none.
        """
        masked, self._masked = self._masked, None
        return masked

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Ticket:
        """Send `rows` tokens to their experts as far as there are slots.

        hidden: address of [rows, hidden] in the dtype; topk_ids: address of int32 [rows, top_k];
        both C-contiguous, valid and unchanged until `combine` returns. Raises ValueError for an id
        that is no expert.
        """
        self._peers.look_around()
        ticket = Ticket(layer, rows, hidden, topk_ids)
        self.stats.dispatches += 1
        self.stats.rows += rows
        # A later ticket must not hold slots that an earlier one needs: it is combined later.
        first_in_line = not self._open or self._open[-1].sent
        self._open.append(ticket)
        try:
            if first_in_line and not self._send_fast(ticket):
                self._send(ticket)
        except BaseException:
            self.abandon(ticket)
            raise
        return ticket

    def combine(self, ticket: Ticket, weights: int, out: int) -> None:
        """Wait for the outputs and write their weighted sums.

        weights: address of float32 [rows, top_k]; out: address of [rows, hidden] in the dtype,
        which may be the dispatched rows themselves; both C-contiguous. Raises DispatchRefused or
        ExpertUnavailable; `out` is undefined then.
        """
        if not self._open or self._open[0] is not ticket:
            raise RuntimeError(f"{ticket} is not the oldest open one of {self._open}")
        try:
            if ticket.lane is None or not ticket.lane.finish(ticket, weights, out):
                while not ticket.done:
                    self._progress(ticket, weights, out)
        except BaseException:
            self.abandon(ticket)
            raise
        del self._open[0]

    def _progress(self, ticket: Ticket, weights: int, out: int) -> None:
        """One round: take what has come, heal what has failed, send what can be, or wait."""
        seen = self._bell.value()
        answers = self._exchange.collect(ticket)
        self._healer.answered(ticket, answers)
        moved = self._healer.act(ticket)
        self._note_masked(ticket)
        combined = self._exchange.combine(ticket, weights, out)
        if answers or moved or combined or self._send(ticket):
            return
        if ticket.rescue is not None and ticket.rescue.orphans:
            epoch = self.epoch
            reason = self.poll()
            if reason is not None:
                orphans = {e for piece in ticket.rescue.orphans for e in piece.experts}
                raise ExpertUnavailable(tuple(sorted(orphans)), reason)
            if self.epoch != epoch:
                return
        self._wait(ticket, seen)

    def _wait(self, ticket: Ticket, seen: int) -> None:
        """Sleep until the bell is not at `seen` any more, or something is due."""
        now = self._clock()
        if not ticket.inflight.unanswered and ticket.blocked_since is None:
            if self._blocked(ticket) is not None:
                ticket.blocked_since = now
        elif ticket.blocked_since is not None and now >= ticket.blocked_since + self._timeout_s:
            worker = self._blocked(ticket)
            if worker is not None:
                self._healer.stuck(ticket, worker)
                return
        until = self._healer.next_look(ticket)
        if now < until:
            self._bell.wait(seen, min(until - now, 3600.0))
            self.stats.wait_s += self._clock() - now

    def _blocked(self, ticket: Ticket) -> str | None:
        """The EW whose slots a ticket waits for."""
        if ticket.rescue is not None and ticket.rescue.queue:
            return ticket.rescue.queue[0][0]
        if ticket.sending is not None and ticket.sending.unsent:
            return ticket.sending.worker(ticket.sending.unsent[0])
        return None

    def abandon(self, ticket: Ticket) -> None:
        """Give a ticket up: its outputs are not wanted. One that is not open is left alone."""
        if ticket in self._open:
            self._open.remove(ticket)
            if ticket.lane is not None:
                ticket.lane.hand_over(ticket)
            self._exchange.abandon(ticket)

    def expert_io(
        self,
        layer: int,
        hidden: NDArray[Any],
        topk_ids: NDArray[np.int32],
        topk_weights: NDArray[np.float32],
        out: NDArray[Any],
    ) -> None:
        """`dispatch` and `combine` at once, on C-contiguous arrays (bfloat16 as uint16 bits).

        hidden, out: [T, hidden]; topk_ids int32, topk_weights float32: [T, top_k].
        """
        rows = len(hidden)
        for name, array, dtype, width in (
            ("hidden", hidden, self._storage, self._hidden),
            ("topk_ids", topk_ids, np.int32, self._top_k),
            ("topk_weights", topk_weights, np.float32, self._top_k),
            ("out", out, self._storage, self._hidden),
        ):
            if array.shape != (rows, width) or array.dtype != dtype:
                expected = f"{np.dtype(dtype)} {(rows, width)}"
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {expected}")
        weights, to = address_of(topk_weights), address_of(out, writable=True)
        ticket = self.dispatch(layer, rows, address_of(hidden), address_of(topk_ids))
        self.combine(ticket, weights, to)

    def close(self) -> None:
        """Give everything up and close the channels."""
        for ticket in tuple(self._open):
            self.abandon(ticket)
        self.links.close()

    def _send_fast(self, ticket: Ticket) -> bool:
        """Send all of it at once if nothing is in the way."""
        return self._lane is not None and ticket.rows <= self._slot_rows and self._lane.send(ticket)

    def _send(self, ticket: Ticket) -> bool:
        """Post what there are slots for, replays first; True if anything was posted."""
        posted = False
        if ticket.rescue is not None and ticket.rescue.queue:
            posted = self._exchange.post_pieces(ticket, self._in_use())
        while True:
            chunk = ticket.sending
            if chunk is None:
                if ticket.next_row == ticket.rows:
                    return posted
                chunk = ticket.sending = self._next_chunk(ticket)
            posted |= self._exchange.post(ticket, chunk)
            if chunk.unsent:
                return posted
            ticket.sending = None

    def _next_chunk(self, ticket: Ticket) -> Chunk:
        routes = self._in_use()
        first = ticket.next_row
        rows = min(self._slot_rows, ticket.rows - first)
        topk_ids = ticket.topk_ids + first * self._top_k * 4
        assignment = routes.router.assign(topk_ids, rows)
        ticket.next_row += rows
        chunk = ticket.chunks[first] = Chunk(first, rows, assignment, routes, topk_ids)
        return chunk

    def _in_use(self) -> Routes:
        if self._routes is None:
            raise RuntimeError("dispatch before the first table")
        return self._routes

    def _note_masked(self, ticket: Ticket) -> None:
        """Count the pairs that were left out, by row of the dispatch."""
        for chunk in ticket.chunks.values():
            if chunk.masked is not None and chunk.complete:
                if self._masked is None or len(self._masked) != ticket.rows:
                    self._masked = np.zeros(ticket.rows, np.int64)
                self._masked[chunk.first : chunk.first + chunk.rows] += chunk.masked.sum(1)

    def _route(self) -> None:
        """Make routes for the table in use around the EWs that take no work."""
        assert self._healer.ert is not None
        self._routes = make_routes(
            self._healer.ert,
            self.down().keys(),
            self._health.avoided,
            top_k=self._top_k,
            hidden=self._hidden,
            dtype=self._dtype,
            incarnation=self.incarnation,
        )
        self._lane = make_lane(
            self._routes,
            self._bell,
            self._exchange,
            self.links,
            self.stats,
            self._health,
            self._peers.probes.interval_s,
        )
