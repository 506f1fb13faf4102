"""A dispatch on its way: what it still has to send, and the replies that have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.datapath.inflight import Inflight

if TYPE_CHECKING:
    from tarragon_hpc.datapath.rows import Assignment
    from tarragon_hpc.transport.base import ClientChannel


class Chunk:
    """Tokens `first` to `first + rows` of a dispatch, with one slot per part.

    unsent: parts that wait for a free slot
    replies, slots: by part, filled as the replies come
    """

    def __init__(self, first: int, rows: int, assignment: Assignment) -> None:
        self.first = first
        self.rows = rows
        self.assignment = assignment
        parts = len(assignment.workers)
        self.unsent = list(range(parts))
        self.replies: list[memoryview | None] = [None] * parts
        self.slots: list[tuple[ClientChannel, int] | None] = [None] * parts


class Ticket:
    """What `Refe.dispatch` returns and `Refe.combine` takes, once.

    hidden, topk_ids: addresses, which must stay valid until `combine` returns
    next_row: the first token that is not in a chunk yet
    """

    def __init__(self, layer: int, rows: int, hidden: int, topk_ids: int) -> None:
        self.layer = layer
        self.rows = rows
        self.hidden = hidden
        self.topk_ids = topk_ids
        self.next_row = 0
        self.inflight = Inflight()
        self.chunks: dict[int, Chunk] = {}  # by first token; those not combined yet
        self.blocked_since: float | None = None

    def __repr__(self) -> str:
        return f"Ticket(layer {self.layer}, {self.next_row}/{self.rows} rows sent, {self.inflight})"

    @property
    def sent(self) -> bool:
        """Every message is on its way."""
        return self.next_row == self.rows and not any(c.unsent for c in self.chunks.values())

    @property
    def done(self) -> bool:
        """Everything has been sent, answered and combined."""
        return not self.chunks and self.next_row == self.rows
