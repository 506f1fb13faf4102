"""The reconfigurable forwarding engine (REFE) of an AW (paper §4.2): rows out, rows back.

One engine thread owns it. `dispatch` sends, `combine` waits and sums; what lies between them (the
shared experts, say) overlaps the round trip. More rows than a slot takes go in several chunks, as
many at once as there are slots; the rest follows inside `combine` as replies free the slots.

Several tickets may be open at a time, first dispatched, first combined; they share the slots, so
what a later one sends at once is what the earlier ones have left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.datapath import inflight
from tarragon_hpc.datapath.combine import STORAGE
from tarragon_hpc.datapath.inflight import Owed
from tarragon_hpc.datapath.links import Links
from tarragon_hpc.datapath.rows import Router, make_router
from tarragon_hpc.datapath.stats import RefeStats
from tarragon_hpc.datapath.ticket import Chunk, Ticket
from tarragon_hpc.errors import (
    DeadlineExceeded,
    DispatchRefused,
    ExpertUnavailable,
    FrameError,
    PeerLost,
)
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.datapath.ert import ERT
    from tarragon_hpc.transport.base import ClientChannel, Connector, Doorbell
    from tarragon_hpc.wire.common import Peer


class Refe:
    """Forwards the rows of one AW's MoE layers to the EWs and back.

    worker, incarnation: of this AW; bell: its doorbell, the connector's own
    experts, top_k, hidden: of the model's MoE layers; dtype: of rows in and out
    slots, slot_rows: slots per EW and rows per slot (configuration, section transport)
    reply_timeout_s: longest wait for a reply
    clock: monotonic seconds

    All methods may raise the TransportErrors named; the ticket concerned is then given up and the
    Refe stays usable.
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
        self._dtype = dtype
        self._dtype_code, itemsize = wire.DTYPES[dtype]
        self._experts, self._top_k, self._hidden = experts, top_k, hidden
        self._row_bytes = hidden * itemsize
        self._slot_rows = slot_rows
        self._timeout_s = reply_timeout_s
        self._clock = clock
        self._bell = bell
        self.geometry = Geometry(
            slots, *wire.slot_geometry(slot_rows, top_k, experts, hidden, itemsize)
        )
        self.links = Links(connector, self.geometry)
        self._ert: ERT | None = None
        self._workers: tuple[str, ...] = ()
        self._router: Router | None = None
        self._sequence = 0
        self._open: list[Ticket] = []

    def __repr__(self) -> str:
        epoch = self._ert.epoch if self._ert else None
        return f"Refe({self.worker}.{self.incarnation}, epoch {epoch}, {self.links})"

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
        if ert.epoch < self.epoch:
            return self.down()
        self._ert = ert
        self._workers = ert.workers
        self.links.update(self._workers, peers)
        self._route()
        return self.down()

    def down(self) -> dict[str, str]:
        """The EWs of the table that take no work at the moment, and why."""
        lost = {w: c.lost for w, c in self.links.channels.items() if c.lost}
        return lost | self.links.down

    def _route(self) -> None:
        assert self._ert is not None
        self._router = make_router(
            self._ert.owners(self._workers, self.links.down.keys()),
            len(self._workers),
            top_k=self._top_k,
            hidden=self._hidden,
            dtype=self._dtype,
            incarnation=self.incarnation,
            epoch=self._ert.epoch,
        )

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Ticket:
        """Send `rows` tokens to their experts as far as there are slots.

        hidden: address of [rows, hidden] in the dtype; topk_ids: address of int32 [rows, top_k];
        both C-contiguous, valid and unchanged until `combine` returns. Raises ValueError for an id
        that is no expert, PeerLost, or ExpertUnavailable.
        """
        ticket = Ticket(layer, rows, hidden, topk_ids)
        self.stats.dispatches += 1
        self.stats.rows += rows
        # A later ticket must not take slots that an earlier one still needs: it is combined later.
        wait = any(not t.sent for t in self._open)
        self._open.append(ticket)
        try:
            if not wait:
                self._send(ticket)
        except BaseException:
            self.abandon(ticket)
            raise
        return ticket

    def combine(self, ticket: Ticket, weights: int, out: int) -> None:
        """Wait for the outputs and write their weighted sums.

        weights: address of float32 [rows, top_k]; out: address of [rows, hidden] in the dtype,
        which may be the dispatched rows themselves; both C-contiguous. Raises PeerLost,
        DeadlineExceeded, DispatchRefused or ExpertUnavailable.
        """
        if not self._open or self._open[0] is not ticket:
            raise RuntimeError(f"{ticket} is not the oldest open one of {self._open}")
        try:
            while not ticket.done:
                seen = self._bell.value()
                if not self._collect(ticket, weights, out) and not self._send(ticket):
                    self._wait(ticket, seen)
        except BaseException:
            self.abandon(ticket)
            raise
        self._open.remove(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Give a ticket up: its replies are not wanted. For a ticket that is not open: nothing."""
        if ticket not in self._open:
            return
        self._open.remove(ticket)
        for owed in ticket.inflight.unanswered:
            self.links.channels[owed.worker].abandon(owed.slot)
        for chunk in ticket.chunks.values():
            _release(chunk)

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
        storage = STORAGE[self._dtype]
        for name, array, dtype, width in (
            ("hidden", hidden, storage, self._hidden),
            ("topk_ids", topk_ids, np.dtype(np.int32), self._top_k),
            ("topk_weights", topk_weights, np.dtype(np.float32), self._top_k),
            ("out", out, storage, self._hidden),
        ):
            if array.shape != (rows, width) or array.dtype != dtype:
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, expected {dtype} {(rows, width)}"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} is not C-contiguous")
        ticket = self.dispatch(layer, rows, hidden.ctypes.data, topk_ids.ctypes.data)
        self.combine(ticket, topk_weights.ctypes.data, out.ctypes.data)

    def close(self) -> None:
        """Give everything up and close the channels."""
        for ticket in list(self._open):
            self.abandon(ticket)
        self.links.close()

    def _send(self, ticket: Ticket) -> bool:
        """Post what there are slots for. True if anything was posted."""
        posted = False
        while True:
            chunk = next((c for c in ticket.chunks.values() if c.unsent), None)
            if chunk is None:
                chunk = self._next_chunk(ticket)
                if chunk is None:
                    return posted
            for part in tuple(chunk.unsent):
                posted |= self._post(ticket, chunk, part)
            if chunk.unsent:
                return posted

    def _next_chunk(self, ticket: Ticket) -> Chunk | None:
        first = ticket.next_row
        rows = min(self._slot_rows, ticket.rows - first)
        if not rows:
            return None
        if self._router is None:
            raise RuntimeError("dispatch before the first table")
        assignment = self._router.assign(ticket.topk_ids + first * self._top_k * 4, rows)
        if assignment.missing:
            raise ExpertUnavailable(assignment.missing, self._why_missing(assignment.missing))
        ticket.next_row += rows
        chunk = ticket.chunks[first] = Chunk(first, rows, assignment)
        return chunk

    def _why_missing(self, experts: tuple[int, ...]) -> str:
        assert self._ert is not None
        holders = dict.fromkeys(w for e in experts for w in self._ert.candidates[e])
        return "; ".join(f"{w}: {self.links.down[w]}" for w in holders) or "no worker holds it"

    def _post(self, ticket: Ticket, chunk: Chunk, part: int) -> bool:
        worker = self._workers[chunk.assignment.workers[part]]
        channel = self.links.channels[worker]
        slot = channel.acquire()
        if slot is None:
            if channel.lost is not None:
                raise self._lost(worker, channel)
            return False
        self._sequence += 1
        nbytes = chunk.assignment.pack(
            part,
            channel.request(slot),
            ticket.hidden + chunk.first * self._row_bytes,
            self._sequence,
            ticket.layer,
            0,
        )
        channel.post(slot, nbytes)
        now = self._clock()
        ticket.inflight.sent(
            Owed(
                worker,
                channel.peer_incarnation,
                slot,
                self._sequence,
                chunk.first,
                part,
                chunk.assignment.size(part)[1],
                now,
                now + self._timeout_s,
            )
        )
        ticket.blocked_since = None
        chunk.unsent.remove(part)
        self.stats.messages += 1
        self.stats.request_bytes += nbytes
        return True

    def _collect(self, ticket: Ticket, weights: int, out: int) -> bool:
        """Take the replies that have come; combine the chunks they complete. True if any came."""
        came = False
        for owed in tuple(ticket.inflight.unanswered):
            channel = self.links.channels[owed.worker]
            lost = channel.lost  # before the reply: it may have come just before the loss
            reply = channel.reply(owed.slot)
            if reply is None:
                if lost is not None:
                    raise self._lost(owed.worker, channel)
                continue
            came = True
            self._check(owed, reply)
            self.stats.answered(owed.worker, len(reply), self._clock() - owed.sent)
            chunk = ticket.chunks[owed.chunk]
            chunk.replies[owed.part] = reply
            chunk.slots[owed.part] = (channel, owed.slot)
            if ticket.inflight.settled(owed) and not chunk.unsent:
                at = chunk.first
                chunk.assignment.combine(
                    chunk.replies,  # type: ignore[arg-type]  # complete: none is None
                    weights + at * self._top_k * 4,
                    out + at * self._row_bytes,
                )
                _release(ticket.chunks.pop(at))
        return came

    def _check(self, owed: Owed, reply: memoryview) -> None:
        """Raises DispatchRefused unless the reply is the one that is owed and has its rows."""
        try:
            header = wire.unpack_reply_header(reply)
            stale = inflight.stale(owed, header, self.epoch)
        except FrameError as error:
            stale = str(error)
        if stale is not None:
            # A slot is answered once, so the right reply cannot come any more either.
            self.stats.stale_replies += 1
            self.links.cut(owed.worker, stale)
            self._route()
            raise DispatchRefused(owed.worker, stale)
        refusal = inflight.refusal(owed, header, self._dtype_code, self._hidden)
        if refusal is not None:
            self.stats.refused += 1
            raise DispatchRefused(owed.worker, refusal)

    def _wait(self, ticket: Ticket, seen: int) -> None:
        """Sleep until something happens; raises DeadlineExceeded when it should have by now."""
        now = self._clock()
        deadline = ticket.inflight.next_deadline()
        if deadline is None:  # every slot it needs is held by an abandoned message
            if ticket.blocked_since is None:
                ticket.blocked_since = now
            deadline = ticket.blocked_since + self._timeout_s
        if now < deadline:
            self._bell.wait(seen, deadline - now)
            self.stats.wait_s += self._clock() - now
            return
        overdue = ticket.inflight.overdue(now)
        if overdue:
            worker = overdue[0].worker
        else:
            chunk = next(c for c in ticket.chunks.values() if c.unsent)
            worker = self._workers[chunk.assignment.workers[chunk.unsent[0]]]
        self.stats.deadlines += 1
        raise DeadlineExceeded(worker, self._timeout_s)

    def _lost(self, worker: str, channel: ClientChannel) -> PeerLost:
        """The EW takes no more work; what it owed is lost with it."""
        reason = channel.lost or "gone"
        self.stats.peers_lost += 1
        self.links.lose(worker, reason)
        self._route()
        return PeerLost(worker, reason)


def _release(chunk: Chunk) -> None:
    """Give back the slots whose replies have come."""
    for held in chunk.slots:
        if held is not None:
            channel, slot = held
            channel.release(slot)
