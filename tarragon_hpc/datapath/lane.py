"""The REFE's fast lane: two native calls for a dispatch that needs one slot per EW.

An optimisation, no second way of doing things: whatever is out of the ordinary (no free slot, a
loss, a late or a strange reply) is handed over to `exchange.py`, which specifies what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.datapath.inflight import Owed
from tarragon_hpc.datapath.ticket import Chunk

if TYPE_CHECKING:
    from tarragon_hpc.datapath.exchange import Exchange
    from tarragon_hpc.datapath.links import Links
    from tarragon_hpc.datapath.rows import Router
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.datapath.ticket import Ticket
    from tarragon_hpc.transport.base import Doorbell


class FastLane:
    """Sends and finishes tickets under one router. Made by `make_lane`."""

    def __init__(
        self,
        lane: native.module.Lane,
        exchange: Exchange,
        links: Links,
        stats: RefeStats,
        timeout_s: float,
    ) -> None:
        self._lane = lane
        self._exchange = exchange
        self._links = links
        self._stats = stats
        self._timeout_s = timeout_s

    def send(self, ticket: Ticket) -> bool:
        """Send everything, or nothing and return False. Raises ValueError for a bad id."""
        call = self._lane.send(
            ticket.topk_ids,
            ticket.rows,
            ticket.hidden,
            self._exchange.sequence + 1,
            ticket.layer,
        )
        if call is None:
            return False
        ticket.lane, ticket.call = self, call
        ticket.next_row = ticket.rows
        messages = len(call.slots)
        self._exchange.sequence += messages
        self._stats.messages += messages
        self._stats.request_bytes += call.request_bytes
        return True

    def finish(self, ticket: Ticket, weights: int, out: int) -> bool:
        """Wait for the replies and combine them. False: something is wrong, and the ticket is the
        exchange's now, with all its messages unanswered."""
        call = ticket.call
        assert call is not None
        outcome = self._lane.finish(call, weights, out, self._timeout_s)
        self._stats.wait_s += call.waited_s
        if outcome != native.module.DONE:
            self.hand_over(ticket)
            return False
        ticket.lane = ticket.call = None
        for index, nbytes, seconds in call.answers:
            self._stats.answered(self._exchange.workers[index], nbytes, seconds)
        return True

    def hand_over(self, ticket: Ticket) -> None:
        """Make an ordinary ticket of one that was sent here."""
        call = ticket.call
        assert call is not None
        ticket.lane = ticket.call = None
        chunk = ticket.chunks[0] = Chunk(0, ticket.rows, call.assignment)
        chunk.unsent = []
        deadline = call.sent_s + self._timeout_s
        for part, ((index, _, pairs), slot) in enumerate(zip(chunk.parts, call.slots, strict=True)):
            worker = self._exchange.workers[index]
            incarnation = self._links.channels[worker].peer_incarnation
            sequence = call.first_sequence + part
            ticket.inflight.sent(
                Owed(worker, incarnation, slot, sequence, 0, part, pairs, call.sent_s, deadline)
            )


def make_lane(
    router: Router,
    bell: Doorbell,
    exchange: Exchange,
    links: Links,
    stats: RefeStats,
    timeout_s: float,
) -> FastLane | None:
    """A lane if the router, the bell and every channel in use have a native side; else None."""
    if native.reason is not None:
        return None
    bell_side = getattr(bell, "native", None)
    if not isinstance(router, native.module.Router) or bell_side is None:
        return None
    workers: list[tuple[native.module.ClientSlots, int] | None] = []
    for worker in exchange.workers:
        channel = links.channels.get(worker)
        if channel is None or worker in links.down:
            workers.append(None)
            continue
        slots = getattr(channel, "native", None)
        if slots is None:
            return None
        workers.append((slots, channel.peer_incarnation))
    lane = native.module.Lane(router, workers, bell_side)
    return FastLane(lane, exchange, links, stats, timeout_s)
