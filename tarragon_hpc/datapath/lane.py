"""The REFE's fast lane: two native calls for a dispatch that needs one slot per EW.

An optimisation, no second way of doing things: whatever is out of the ordinary (no free slot, a
loss, a strange or a missing reply) is handed over to `exchange.py`, which specifies what happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.datapath.ticket import Chunk

if TYPE_CHECKING:
    from tarragon_hpc.datapath.exchange import Exchange
    from tarragon_hpc.datapath.health import Health
    from tarragon_hpc.datapath.links import Links
    from tarragon_hpc.datapath.routes import Routes
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.datapath.ticket import Ticket
    from tarragon_hpc.transport.base import ClientChannel, Doorbell


class FastLane:
    """Sends and finishes tickets under one set of routes. Made by `make_lane`.

    channels: by index of the routes' workers; None: not usable
    """

    def __init__(
        self,
        lane: native.module.Lane,
        routes: Routes,
        channels: list[ClientChannel | None],
        exchange: Exchange,
        stats: RefeStats,
        health: Health,
        probe_s: float,
    ) -> None:
        self._probe_s = probe_s
        self._lane = lane
        self._routes = routes
        self._channels = channels
        self._exchange = exchange
        self._stats = stats
        self._health = health

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
        """Wait for the replies and combine them. False: something is wrong or takes long, and the
        ticket is the exchange's now, with all its messages unanswered."""
        call = ticket.call
        assert call is not None
        names, patience = self._routes.workers, self._health.patience
        longest, parts = self._probe_s, call.assignment.parts
        for index, _, pairs in parts:
            longest = min(longest, patience(names[index], pairs))
        outcome = self._lane.finish(call, weights, out, longest)
        self._stats.wait_s += call.waited_s
        if outcome != native.module.DONE:
            self.hand_over(ticket)
            return False
        ticket.lane = ticket.call = None
        for (index, nbytes, seconds), (_, _, pairs) in zip(call.answers, parts, strict=True):
            self._stats.answered(names[index], nbytes, seconds)
            self._health.answered(names[index], pairs, seconds)
        return True

    def hand_over(self, ticket: Ticket) -> None:
        """Make an ordinary ticket of one that was sent here."""
        call = ticket.call
        assert call is not None
        ticket.lane = ticket.call = None
        chunk = Chunk(0, ticket.rows, call.assignment, self._routes, ticket.topk_ids)
        ticket.chunks[0] = chunk
        chunk.unsent = []
        for part, ((index, _, _), slot) in enumerate(zip(chunk.parts, call.slots, strict=True)):
            channel = self._channels[index]
            assert channel is not None
            sequence = call.first_sequence + part
            self._exchange.owe(ticket, chunk, part, channel, slot, sequence, call.sent_s)


def make_lane(
    routes: Routes,
    bell: Doorbell,
    exchange: Exchange,
    links: Links,
    stats: RefeStats,
    health: Health,
    probe_s: float,
) -> FastLane | None:
    """A lane if the router, the bell and every channel in use have a native side; else None."""
    if native.reason is not None:
        return None
    bell_side = getattr(bell, "native", None)
    if not isinstance(routes.router, native.module.Router) or bell_side is None:
        return None
    sides: list[tuple[native.module.ClientSlots, int] | None] = []
    channels: list[ClientChannel | None] = []
    for worker in routes.workers:
        channel = links.usable(worker)
        channels.append(channel)
        if channel is None:
            sides.append(None)
            continue
        slots = getattr(channel, "native", None)
        if slots is None:
            return None
        sides.append((slots, channel.peer_incarnation))
    sides.append(None)  # nobody
    lane = native.module.Lane(routes.router, sides, bell_side)
    return FastLane(lane, routes, channels, exchange, stats, health, probe_s)
