"""A dispatch on its way: what it still has to send, and the replies that have come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc.datapath.assign import assign
from tarragon_hpc.datapath.inflight import Inflight
from tarragon_hpc.datapath.rows import array_at
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tarragon_hpc import native
    from tarragon_hpc.datapath.assign import Assigned, Part
    from tarragon_hpc.datapath.lane import FastLane
    from tarragon_hpc.datapath.reroute import Piece
    from tarragon_hpc.datapath.routes import Routes
    from tarragon_hpc.datapath.rows import Assignment
    from tarragon_hpc.transport.base import ClientChannel


class Assembly:
    """The reply of a part, put together from pieces: `groups` are still missing."""

    __slots__ = ("buffer", "groups")

    def __init__(self, groups: int, pairs: int, row_bytes: int) -> None:
        self.buffer = memoryview(bytearray(wire.HEADER_BYTES + pairs * row_bytes))
        self.groups = set(range(groups))


class Chunk:
    """Tokens `first` to `first + rows` of a dispatch, one message per part.

    parts: (index of the EW in the routes, rows, pairs)
    unsent: parts that wait for a free slot
    replies: by part; held: by part, the slot that its reply lies in
    assemblies: by part, replies that come in pieces
    masked: bool [rows, top_k], pairs that are left out; None: none are
    """

    __slots__ = (
        "_assigned",
        "_topk_ids",
        "assemblies",
        "assignment",
        "first",
        "held",
        "masked",
        "parts",
        "replies",
        "routes",
        "rows",
        "unsent",
    )

    def __init__(
        self, first: int, rows: int, assignment: Assignment, routes: Routes, topk_ids: int
    ) -> None:
        self.first = first
        self.rows = rows
        self.assignment = assignment
        self.routes = routes
        self.parts = assignment.parts
        self.unsent = list(range(len(self.parts)))
        self.replies: dict[int, memoryview] = {}
        self.held: dict[int, tuple[ClientChannel, int]] = {}
        self.assemblies: dict[int, Assembly] = {}
        self.masked: NDArray[np.bool_] | None = None
        self._topk_ids = topk_ids
        self._assigned: Assigned | None = None

    @property
    def complete(self) -> bool:
        """Every part has its reply."""
        return len(self.replies) == len(self.parts)

    def worker(self, part: int) -> str:
        """The EW a part was assigned to; empty: nobody serves its experts."""
        return self.routes.name(self.parts[part][0])

    def ids(self) -> NDArray[np.int32]:
        """int32 [rows, top_k], where the caller keeps them."""
        return array_at(self._topk_ids, (self.rows, self.routes.top_k), np.dtype(np.int32))

    def whole(self, part: int) -> Part:
        """What a part consists of, for sending it again (the packer does not keep that)."""
        if self._assigned is None:
            self._assigned = assign(self.routes.owners, self.ids())
        return self._assigned.parts[part]

    def assembly(self, part: int) -> Assembly:
        """Where pieces of a part's reply are put."""
        found = self.assemblies.get(part)
        if found is None:
            whole = self.whole(part)
            pairs = self.parts[part][2]
            found = Assembly(len(whole.experts), pairs, self.routes.row_bytes)
            self.assemblies[part] = found
        return found

    def move_out(self, channel: ClientChannel) -> bool:
        """Give back one slot of a channel whose reply has come, and keep the reply elsewhere; False
        if there is none.
        """
        for part, (holder, slot) in self.held.items():
            if holder is channel:
                self.replies[part] = memoryview(bytearray(self.replies[part]))
                channel.release(slot)
                del self.held[part]
                return True
        return False

    def release(self) -> None:
        """Give back the slots whose replies have come."""
        for channel, slot in self.held.values():
            channel.release(slot)


@dataclass(slots=True)
class Outage:
    """The failure of one EW, from its detection to the first answer of somebody else."""

    incarnation: int
    how: str
    detected: float
    rerouted: float | None = None
    pairs: int = 0
    told: bool = False


@dataclass(slots=True)
class Rescue:
    """What is done about the failures that a ticket has met.

    homeless: pieces to be routed; queue: (EW, piece) that wait for a slot
    orphans: pieces whose experts nobody serves; `since` when there have been any
    hedged: sequences that are overdue, and asked elsewhere if that was possible
    outages: by EW
    """

    homeless: list[Piece] = field(default_factory=list)
    queue: list[tuple[str, Piece]] = field(default_factory=list)
    orphans: list[Piece] = field(default_factory=list)
    since: float | None = None
    hedged: set[int] = field(default_factory=set)
    outages: dict[str, Outage] = field(default_factory=dict)

    def drop(self, chunk: int, part: int) -> None:
        """A part has its reply: nothing of it needs to be sent any more."""
        self.homeless = [p for p in self.homeless if (p.chunk, p.part) != (chunk, part)]
        self.orphans = [p for p in self.orphans if (p.chunk, p.part) != (chunk, part)]
        self.queue = [(w, p) for w, p in self.queue if (p.chunk, p.part) != (chunk, part)]


class Ticket:
    """What `Refe.dispatch` returns and `Refe.combine` takes, once.

    hidden, topk_ids: addresses, which must stay valid until `combine` returns
    next_row: the first token that is not in a chunk yet
    chunks: by first token, those not combined yet; `sending`: the one with unsent parts, if any
    blocked_since: when it began to wait for slots alone, with nothing owed to it
    lane, call: while the fast lane has it; all messages are sent then, and there are no chunks
    rescue: once something has failed; generation: of the routes its orphans were looked at with
    """

    __slots__ = (
        "blocked_since",
        "call",
        "chunks",
        "generation",
        "hidden",
        "inflight",
        "lane",
        "layer",
        "next_row",
        "rescue",
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
        self.rescue: Rescue | None = None
        self.generation = -1

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

    def rescued(self) -> Rescue:
        """Its rescue, begun if there was none."""
        if self.rescue is None:
            self.rescue = Rescue()
        return self.rescue
