"""Messages of the REFE: parts of chunks and pieces of parts into slots, replies out of them.

It acts. What an EW's failure means is decided elsewhere: failures are handed to `on_failure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.datapath import inflight, masking
from tarragon_hpc.datapath.inflight import Owed
from tarragon_hpc.datapath.reroute import all_of, as_part, place
from tarragon_hpc.datapath.rows import pack_part
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.datapath.health import Health
    from tarragon_hpc.datapath.links import Links
    from tarragon_hpc.datapath.reroute import Piece
    from tarragon_hpc.datapath.routes import Routes
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.datapath.ticket import Chunk, Ticket
    from tarragon_hpc.transport.base import ClientChannel


@dataclass(frozen=True, slots=True)
class Failure:
    """A message that will not be answered. `refused`: the EW lives, and has answered so."""

    owed: Owed
    reason: str
    refused: bool = False


class Exchange:
    """Posts and collects for one REFE; knows slots and headers, not routing.

    sequence: of the last message sent
    on_failure: told of every failure, with the ticket concerned; the message is withdrawn by then
    on_unusable: told of an EW that could not be sent a ticket's rows
    """

    def __init__(
        self,
        links: Links,
        stats: RefeStats,
        health: Health,
        *,
        incarnation: int,
        top_k: int,
        hidden: int,
        dtype: str,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.sequence = 0
        self.on_failure: Callable[[Ticket, Failure], None] = lambda ticket, failure: None
        self.on_unusable: Callable[[Ticket, str], None] = lambda ticket, worker: None
        self._links = links
        self._stats = stats
        self._health = health
        self._incarnation = incarnation
        self._top_k = top_k
        self._hidden = hidden
        self._dtype_name = dtype
        self._dtype, itemsize = wire.DTYPES[dtype]
        self._row_bytes = hidden * itemsize
        self._weights_bytes = top_k * 4
        self._timeout_s = timeout_s
        self._clock = clock

    def post(self, ticket: Ticket, chunk: Chunk) -> bool:
        """Send the unsent parts that find a free slot; True if any did.

        Parts whose EW is lost, or that nobody serves, are left to the ticket's rescue.
        """
        blocked = []
        hidden = ticket.hidden + chunk.first * self._row_bytes
        for part in chunk.unsent:
            worker = chunk.worker(part)
            channel = self._links.usable(worker)
            slot = None if channel is None else channel.acquire()
            if channel is None or (slot is None and worker in self._health.avoided):
                self.on_unusable(ticket, worker)
                piece = all_of(chunk.first, part, chunk.whole(part), worker)
                ticket.rescued().homeless.append(piece)
                continue
            if slot is None:
                blocked.append(part)
                continue
            self.sequence += 1
            nbytes = chunk.assignment.pack(
                part, channel.request(slot), hidden, self.sequence, ticket.layer, 0
            )
            channel.post(slot, nbytes)
            self._sent(nbytes)
            self.owe(ticket, chunk, part, channel, slot, self.sequence, self._clock())
        if len(blocked) == len(chunk.unsent):
            return False
        chunk.unsent = blocked
        return True

    def post_pieces(self, ticket: Ticket, routes: Routes) -> bool:
        """Send the pieces in the ticket's queue that find a free slot, marked as replays."""
        rescue = ticket.rescued()
        queue, rescue.queue = rescue.queue, []
        moved = False
        for worker, piece in queue:
            channel = self._links.usable(worker)
            if channel is None:
                self.on_unusable(ticket, worker)
                rescue.homeless.append(piece)
                moved = True
                continue
            slot = channel.acquire()
            if slot is None and any(c.move_out(channel) for c in ticket.chunks.values()):
                # What lay there waited for its chunk, and that perhaps for this very piece.
                slot = channel.acquire()
            if slot is None:
                rescue.queue.append((worker, piece))
                continue
            chunk = ticket.chunks[piece.chunk]
            self.sequence += 1
            nbytes = pack_part(
                as_part(piece, 0),
                channel.request(slot),
                ticket.hidden + chunk.first * self._row_bytes,
                dtype=self._dtype_name,
                width=self._hidden,
                incarnation=self._incarnation,
                epoch=routes.epoch,
                sequence=self.sequence,
                layer=ticket.layer,
                flags=wire.FLAG_REPLAY,
            )
            channel.post(slot, nbytes)
            self._sent(nbytes)
            self.owe(
                ticket,
                chunk,
                piece.part,
                channel,
                slot,
                self.sequence,
                self._clock(),
                again=(piece, routes.epoch),
            )
            self._stats.replayed_pairs += piece.pairs
            moved = True
        return moved

    def owe(
        self,
        ticket: Ticket,
        chunk: Chunk,
        part: int,
        channel: ClientChannel,
        slot: int,
        sequence: int,
        sent: float,
        again: tuple[Piece, int] | None = None,
    ) -> None:
        """A message is on its way since `sent`: a part, or `again` a piece of it under an epoch."""
        piece, epoch = again or (None, chunk.routes.epoch)
        pairs = chunk.parts[part][2] if piece is None else piece.pairs
        ticket.blocked_since = None
        ticket.inflight.sent(
            Owed(
                channel.peer,
                channel.peer_incarnation,
                channel,
                slot,
                sequence,
                epoch,
                chunk.first,
                part,
                piece,
                pairs,
                sent,
                sent + self._health.patience(channel.peer, pairs),
                sent + self._timeout_s,
            )
        )

    def _sent(self, nbytes: int) -> None:
        self._stats.messages += 1
        self._stats.request_bytes += nbytes

    def collect(self, ticket: Ticket) -> list[Owed]:
        """Take the replies that have come; returns what was answered well."""
        answered = []
        for owed in ticket.inflight.unanswered:
            if not ticket.inflight.awaits(owed):
                continue  # a rival's answer has completed the part meanwhile
            lost = owed.channel.lost  # before the reply: it may have come just before the loss
            reply = owed.channel.reply(owed.slot)
            if reply is None:
                if lost is not None:
                    self.fail(ticket, Failure(owed, lost))
                continue
            if self._good(ticket, owed, reply):
                seconds = self._clock() - owed.sent
                self._stats.answered(owed.worker, len(reply), seconds)
                self._health.answered(owed.worker, owed.pairs, seconds)
                answered.append(owed)
                self._take(ticket, owed, reply)
        return answered

    def fail(self, ticket: Ticket, failure: Failure) -> None:
        """A message will not be answered, or its answer is of no use."""
        ticket.inflight.withdraw(failure.owed)
        self.on_failure(ticket, failure)

    def _good(self, ticket: Ticket, owed: Owed, reply: memoryview) -> bool:
        """Whether the reply is the one that is owed, with its rows; else that is a failure."""
        try:
            header = wire.unpack_reply_header(reply)
            problem = inflight.stale(owed, ticket.layer, header)
        except FrameError as error:
            problem = str(error)
        if problem is not None:
            # A slot is answered once, so the right reply cannot come any more either.
            self._stats.stale_replies += 1
            self._links.cut(owed.worker, problem)
            self.fail(ticket, Failure(owed, problem))
            return False
        problem = inflight.refusal(owed, header, self._dtype, self._hidden)
        if problem is not None:
            self._stats.refused += 1
            owed.channel.release(owed.slot)
            self.fail(ticket, Failure(owed, problem, refused=True))
            return False
        return True

    def _take(self, ticket: Ticket, owed: Owed, reply: memoryview) -> None:
        chunk = ticket.chunks[owed.chunk]
        ticket.inflight.withdraw(owed)
        if owed.piece is None:
            chunk.held[owed.part] = owed.channel, owed.slot
        else:
            assembly = chunk.assembly(owed.part)
            place(owed.piece, reply, assembly.buffer, self._row_bytes)
            owed.channel.release(owed.slot)
            assembly.groups -= set(owed.piece.groups)
            if assembly.groups:
                return
            reply = assembly.buffer
        self.settle(ticket, chunk, owed.part, reply)

    def settle(self, ticket: Ticket, chunk: Chunk, part: int, reply: memoryview) -> None:
        """A part has its reply: whoever else was asked for it need not answer any more."""
        chunk.replies[part] = reply
        for rival in ticket.inflight.of(chunk.first, part):
            ticket.inflight.withdraw(rival)
            rival.channel.abandon(rival.slot)
        if ticket.rescue is not None:
            ticket.rescue.drop(chunk.first, part)

    def combine(self, ticket: Ticket, weights: int, out: int) -> bool:
        """Sum up the complete chunks and let go of them; True if there were any.

        weights, out: addresses, as for `Refe.combine`.
        """
        ready = [chunk for chunk in ticket.chunks.values() if chunk.complete]
        for chunk in ready:
            at = weights + chunk.first * self._weights_bytes
            masked = masking.weights_without(chunk, at)
            chunk.assignment.combine(
                [chunk.replies[part] for part in range(len(chunk.parts))],
                at if masked is None else masked.ctypes.data,
                out + chunk.first * self._row_bytes,
            )
            ticket.chunks.pop(chunk.first).release()
        return bool(ready)

    def abandon(self, ticket: Ticket) -> None:
        """Give back all slots of a ticket, now or when the replies have come."""
        for owed in ticket.inflight.unanswered:
            ticket.inflight.withdraw(owed)
            owed.channel.abandon(owed.slot)
        for chunk in ticket.chunks.values():
            chunk.release()
