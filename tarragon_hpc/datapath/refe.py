"""The reconfigurable forwarding engine (REFE) of an AW (paper §4.2): rows out, rows back.

One engine thread owns it. `dispatch` sends, `combine` waits and sums; what lies between them (the
shared experts, say) overlaps the round trip. More rows than a slot takes go in several chunks, as
many at once as there are slots; the rest follows inside `combine` as replies free the slots.

Several tickets may be open at a time, first dispatched, first combined; they share the slots, so a
later one sends only once the earlier ones have sent everything, and what slots they left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.datapath.combine import STORAGE
from tarragon_hpc.datapath.exchange import Exchange
from tarragon_hpc.datapath.lane import FastLane, make_lane
from tarragon_hpc.datapath.links import Links
from tarragon_hpc.datapath.rows import Router, make_router
from tarragon_hpc.datapath.stats import RefeStats
from tarragon_hpc.datapath.ticket import Chunk, Ticket
from tarragon_hpc.errors import ExpertUnavailable, PeerLost, TransportError
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.parse import address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.datapath.ert import ERT
    from tarragon_hpc.transport.base import Connector, Doorbell
    from tarragon_hpc.wire.common import Peer


class Refe:
    """Forwards the rows of one AW's MoE layers to the EWs and back.

    worker, incarnation: of this AW; bell: its doorbell, the connector's own
    experts, top_k, hidden: of the model's MoE layers; dtype: of rows in and out
    slots, slot_rows: slots per EW and rows per slot (configuration, section transport)
    reply_timeout_s: longest wait for a reply
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
        reply_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.stats = RefeStats()
        itemsize = wire.DTYPES[dtype][1]
        self.geometry = Geometry(
            slots, *wire.slot_geometry(slot_rows, top_k, experts, hidden, itemsize)
        )
        self.links = Links(connector, self.geometry)
        self._experts, self._top_k, self._hidden, self._dtype = experts, top_k, hidden, dtype
        self._storage = STORAGE[dtype]
        self._slot_rows = slot_rows
        self._bell = bell
        self._timeout_s = reply_timeout_s
        self._exchange = Exchange(
            self.links,
            bell,
            self.stats,
            top_k=top_k,
            hidden=hidden,
            dtype=dtype,
            timeout_s=reply_timeout_s,
            clock=clock,
        )
        self._ert: ERT | None = None
        self._router: Router | None = None
        self._lane: FastLane | None = None
        self._open: list[Ticket] = []

    def __repr__(self) -> str:
        return f"Refe({self.worker}.{self.incarnation}, epoch {self.epoch}, {self.links})"

    @property
    def epoch(self) -> int:
        """Epoch of the routing table in use; 0 before the first."""
        return self._ert.epoch if self._ert else 0

    def apply_table(self, ert: ERT, peers: Mapping[str, Peer]) -> dict[str, str]:
        """Route by this table from now on; connects and drops EWs as it says.

        Returns the EWs of the table that could not be reached, with the reason: their experts go
        to the next candidates, or are unavailable. A table older than the one in use changes
        nothing. Between steps only: no ticket may be open.
        """
        if self._open:
            raise RuntimeError(f"apply_table with open tickets: {self._open}")
        if len(ert.candidates) != self._experts:
            raise ValueError(f"table of {len(ert.candidates)} experts, expected {self._experts}")
        if ert.epoch >= self.epoch:
            self._ert = ert
            self._exchange.workers = ert.workers
            self._exchange.epoch = ert.epoch
            self.links.update(ert.workers, peers)
            self._route()
        return self.down()

    def down(self) -> dict[str, str]:
        """The EWs of the table that take no work at the moment, and why."""
        lost = {w: c.lost for w, c in self.links.channels.items() if c.lost}
        return lost | self.links.down

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Ticket:
        """Send `rows` tokens to their experts as far as there are slots.

        hidden: address of [rows, hidden] in the dtype; topk_ids: address of int32 [rows, top_k];
        both C-contiguous, valid and unchanged until `combine` returns. Raises ValueError for an id
        that is no expert, PeerLost or ExpertUnavailable.
        """
        ticket = Ticket(layer, rows, hidden, topk_ids)
        self.stats.dispatches += 1
        self.stats.rows += rows
        # A later ticket must not hold slots that an earlier one needs: it is combined later.
        first_in_line = not self._open or self._open[-1].sent
        self._open.append(ticket)
        try:
            if first_in_line and not self._send_fast(ticket):
                self._send(ticket)
        except BaseException as error:
            self._fail(ticket, error)
            raise
        return ticket

    def combine(self, ticket: Ticket, weights: int, out: int) -> None:
        """Wait for the outputs and write their weighted sums.

        weights: address of float32 [rows, top_k]; out: address of [rows, hidden] in the dtype,
        which may be the dispatched rows themselves; both C-contiguous. Raises PeerLost,
        DeadlineExceeded, DispatchRefused or ExpertUnavailable; `out` is undefined then.
        """
        if not self._open or self._open[0] is not ticket:
            raise RuntimeError(f"{ticket} is not the oldest open one of {self._open}")
        try:
            if ticket.lane is not None and ticket.lane.finish(ticket, weights, out):
                del self._open[0]
                return
            while not ticket.done:
                seen = self._bell.value()
                if not self._exchange.collect(ticket, weights, out) and not self._send(ticket):
                    self._exchange.wait(ticket, seen)
        except BaseException as error:
            self._fail(ticket, error)
            raise
        del self._open[0]

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
        """Post what there are slots for; True if anything was posted."""
        posted = False
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
        if self._router is None:
            raise RuntimeError("dispatch before the first table")
        first = ticket.next_row
        rows = min(self._slot_rows, ticket.rows - first)
        assignment = self._router.assign(ticket.topk_ids + first * self._top_k * 4, rows)
        if assignment.missing:
            raise ExpertUnavailable(assignment.missing, self._why_missing(assignment.missing))
        ticket.next_row += rows
        chunk = ticket.chunks[first] = Chunk(first, rows, assignment)
        return chunk

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        """Give the ticket up; an EW that is lost, or was cut off, takes no more work."""
        self.abandon(ticket)
        if isinstance(error, PeerLost):
            self.stats.peers_lost += 1
            self.links.lose(error.peer, error.reason)
        if isinstance(error, TransportError):
            self._route()

    def _route(self) -> None:
        """Make the router of the table in use and of the EWs that take work."""
        assert self._ert is not None
        self._router = make_router(
            self._ert.owners(self._exchange.workers, self.links.down.keys()),
            len(self._exchange.workers),
            top_k=self._top_k,
            hidden=self._hidden,
            dtype=self._dtype,
            incarnation=self.incarnation,
            epoch=self._ert.epoch,
        )
        self._lane = make_lane(
            self._router, self._bell, self._exchange, self.links, self.stats, self._timeout_s
        )

    def _why_missing(self, experts: tuple[int, ...]) -> str:
        assert self._ert is not None
        holders = dict.fromkeys(w for e in experts for w in self._ert.candidates[e])
        return "; ".join(f"{w}: {self.links.down[w]}" for w in holders) or "no worker holds it"
