"""A dispatch on its way: what it still has to send, and the replies that have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.datapath.inflight import Inflight

if TYPE_CHECKING:
    from tarragon_hpc import native
    from tarragon_hpc.datapath.lane import FastLane
    from tarragon_hpc.datapath.rows import Assignment
    from tarragon_hpc.transport.base import ClientChannel


class Chunk:
    """Tokens `first` to `first + rows` of a dispatch, one message per part.

    parts: (index of the EW, rows, pairs)
    unsent: parts that wait for a free slot
    replies, held: by part, the reply and the slot it lies in, as they come
    """

    __slots__ = ("assignment", "first", "held", "parts", "replies", "rows", "unsent")

    def __init__(self, first: int, rows: int, assignment: Assignment) -> None:
        self.first = first
        self.rows = rows
        self.assignment = assignment
        self.parts = assignment.parts
        self.unsent = list(range(len(self.parts)))
        self.replies: dict[int, memoryview] = {}
        self.held: list[tuple[ClientChannel, int]] = []

    def release(self) -> None:
        """Give back the slots whose replies have come."""
        for channel, slot in self.held:
            channel.release(slot)


class Ticket:
    """What `Refe.dispatch` returns and `Refe.combine` takes, once.

    hidden, topk_ids: addresses, which must stay valid until `combine` returns
    next_row: the first token that is not in a chunk yet
    chunks: by first token, those not combined yet; `sending`: the one with unsent parts, if any
    blocked_since: when it began to wait for slots alone, with nothing owed to it
    lane, call: while the fast lane has it; all messages are sent then, and there are no chunks
    """

    __slots__ = (
        "blocked_since",
        "call",
        "chunks",
        "hidden",
        "inflight",
        "lane",
        "layer",
        "next_row",
        "rows",
        "sending",
        "topk_ids",
    )

    def __init__(self, layer: int, rows: int, hidden: int, topk_ids: int) -> None:
        self.layer = layer
        self.rows = rows
        self.hidden = hidden
        self.topk_ids = topk_ids
        self.next_row = 0
        self.inflight = Inflight()
        self.chunks: dict[int, Chunk] = {}
        self.sending: Chunk | None = None
        self.blocked_since: float | None = None
        self.lane: FastLane | None = None
        self.call: native.module.Call | None = None

    def __repr__(self) -> str:
        return f"Ticket(layer {self.layer}, {self.next_row}/{self.rows} rows sent, {self.inflight})"

    @property
    def sent(self) -> bool:
        """Every message is on its way."""
        return self.next_row == self.rows and self.sending is None

    @property
    def done(self) -> bool:
        """Everything has been sent, answered and combined."""
        return self.next_row == self.rows and not self.chunks and self.call is None
