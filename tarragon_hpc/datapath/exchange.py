"""Messages of the REFE: parts of chunks into slots, replies out of them.

It acts, and reports failures as typed errors; what follows from them is the REFE's to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.datapath import inflight
from tarragon_hpc.datapath.inflight import Owed
from tarragon_hpc.errors import DeadlineExceeded, DispatchRefused, FrameError, PeerLost
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.datapath.links import Links
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.datapath.ticket import Chunk, Ticket
    from tarragon_hpc.transport.base import Doorbell


class Exchange:
    """Posts and collects for one REFE; knows slots and headers, not routing.

    workers, epoch: of the routing table in use; parts name EWs by their index in `workers`
    sequence: of the last message sent
    """

    def __init__(
        self,
        links: Links,
        bell: Doorbell,
        stats: RefeStats,
        *,
        top_k: int,
        hidden: int,
        dtype: str,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.workers: tuple[str, ...] = ()
        self.epoch = 0
        self._links = links
        self._bell = bell
        self._stats = stats
        self._hidden = hidden
        self._dtype, itemsize = wire.DTYPES[dtype]
        self._row_bytes = hidden * itemsize
        self._weights_bytes = top_k * 4
        self._timeout_s = timeout_s
        self._clock = clock
        self.sequence = 0

    def post(self, ticket: Ticket, chunk: Chunk) -> bool:
        """Send the unsent parts that find a free slot; True if any did. Raises PeerLost."""
        blocked = []
        hidden = ticket.hidden + chunk.first * self._row_bytes
        for part in chunk.unsent:
            index, _, pairs = chunk.parts[part]
            worker = self.workers[index]
            channel = self._links.channels[worker]
            slot = channel.acquire()
            if slot is None:
                if channel.lost is not None:
                    raise PeerLost(worker, channel.lost)
                blocked.append(part)
                continue
            self.sequence = sequence = self.sequence + 1
            nbytes = chunk.assignment.pack(
                part, channel.request(slot), hidden, sequence, ticket.layer, 0
            )
            channel.post(slot, nbytes)
            now = self._clock()
            ticket.inflight.sent(
                Owed(
                    worker,
                    channel.peer_incarnation,
                    slot,
                    sequence,
                    chunk.first,
                    part,
                    pairs,
                    now,
                    now + self._timeout_s,
                )
            )
            self._stats.messages += 1
            self._stats.request_bytes += nbytes
        if len(blocked) == len(chunk.unsent):
            return False
        chunk.unsent = blocked
        ticket.blocked_since = None
        return True

    def collect(self, ticket: Ticket, weights: int, out: int) -> bool:
        """Take the replies that have come and combine the chunks they complete; True if any came.

        weights, out: addresses, as for `Refe.combine`. Raises PeerLost or DispatchRefused.
        """
        came = False
        for owed in tuple(ticket.inflight.unanswered):
            channel = self._links.channels[owed.worker]
            lost = channel.lost  # before the reply: it may have come just before the loss
            reply = channel.reply(owed.slot)
            if reply is None:
                if lost is not None:
                    raise PeerLost(owed.worker, lost)
                continue
            came = True
            self._check(owed, reply)
            self._stats.answered(owed.worker, len(reply), self._clock() - owed.sent)
            chunk = ticket.chunks[owed.chunk]
            chunk.replies[owed.part] = reply
            chunk.held.append((channel, owed.slot))
            if ticket.inflight.settled(owed) and not chunk.unsent:
                at = chunk.first
                chunk.assignment.combine(
                    [chunk.replies[part] for part in range(len(chunk.parts))],
                    weights + at * self._weights_bytes,
                    out + at * self._row_bytes,
                )
                ticket.chunks.pop(at).release()
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
            self._stats.stale_replies += 1
            self._links.cut(owed.worker, stale)
            raise DispatchRefused(owed.worker, stale)
        refusal = inflight.refusal(owed, header, self._dtype, self._hidden)
        if refusal is not None:
            self._stats.refused += 1
            raise DispatchRefused(owed.worker, refusal)

    def wait(self, ticket: Ticket, seen: int) -> None:
        """Sleep until the bell is not at `seen` any more. Raises DeadlineExceeded if it is too late
        for what should have happened by now."""
        now = self._clock()
        deadline = ticket.inflight.next_deadline()
        if deadline is None:  # every slot it needs is held by a message given up before
            if ticket.blocked_since is None:
                ticket.blocked_since = now
            deadline = ticket.blocked_since + self._timeout_s
        if now < deadline:
            self._bell.wait(seen, deadline - now)
            self._stats.wait_s += self._clock() - now
            return
        self._stats.deadlines += 1
        raise DeadlineExceeded(self._late(ticket, now), self._timeout_s)

    def _late(self, ticket: Ticket, now: float) -> str:
        """The EW that a ticket waits for in vain."""
        overdue = ticket.inflight.overdue(now)
        if overdue:
            return overdue[0].worker
        assert ticket.sending is not None
        return self.workers[ticket.sending.parts[ticket.sending.unsent[0]][0]]

    def abandon(self, ticket: Ticket) -> None:
        """Give back all slots of a ticket, now or when the replies have come."""
        for owed in ticket.inflight.unanswered:
            self._links.channels[owed.worker].abandon(owed.slot)
        for chunk in ticket.chunks.values():
            chunk.release()
