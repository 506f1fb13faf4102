"""What the EWs owe a dispatch: unanswered messages, their deadlines, and which replies count.

Pure: the clock is an argument, slots and buffers are somebody else's. One `Inflight` per dispatch.
A part of a chunk may be owed by several EWs at a time: by the one it was sent to, and piece by
piece by those it was sent to again (reroute.py); the first complete answer counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Set

    from tarragon_hpc.datapath.reroute import Piece
    from tarragon_hpc.transport.base import ClientChannel
    from tarragon_hpc.wire.dispatch import ReplyHeader

REFUSALS = {
    wire.STATUS_UNKNOWN_EXPERT: "it does not hold a wanted expert",
    wire.STATUS_BAD_REQUEST: "it finds the request invalid",
    wire.STATUS_STALE: "it finds the request stale",
    wire.STATUS_FAILED: "its computation failed",
}


class Owed(NamedTuple):
    """One message whose reply is owed.

    channel, slot: where the reply will lie; incarnation: of the worker
    sequence:    of the message; unique in the life of this AW
    epoch:       of the table it was sent under
    chunk, part: which rows: the part of the chunk's assignment
    piece:       which groups of it; None: all of them, as they were assigned first
    pairs:       output rows that are owed
    sent, overdue, deadline: seconds on the caller's clock
    """

    worker: str
    incarnation: int
    channel: ClientChannel
    slot: int
    sequence: int
    epoch: int
    chunk: int
    part: int
    piece: Piece | None
    pairs: int
    sent: float
    overdue: float
    deadline: float


class Inflight:
    """The unanswered messages of one dispatch, in the order they were sent."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: dict[int, Owed] = {}

    def __repr__(self) -> str:
        return f"Inflight({', '.join(f'{o.worker}[{o.slot}]' for o in self._owed.values())})"

    @property
    def unanswered(self) -> list[Owed]:
        """All of them."""
        return list(self._owed.values())

    def sent(self, owed: Owed) -> None:
        """A message is on its way."""
        self._owed[owed.sequence] = owed

    def awaits(self, owed: Owed) -> bool:
        """Whether its reply still counts."""
        return owed.sequence in self._owed

    def withdraw(self, owed: Owed) -> None:
        """Its reply is not awaited any more: it has come, or somebody else's has."""
        del self._owed[owed.sequence]

    def of(self, chunk: int, part: int) -> list[Owed]:
        """Who owes (pieces of) a part."""
        return [o for o in self._owed.values() if o.chunk == chunk and o.part == part]

    def overdue(self, now: float, known: Set[int] = frozenset()) -> list[Owed]:
        """What should have been answered by now, but for the `known` sequences."""
        return [o for o in self._owed.values() if o.overdue <= now and o.sequence not in known]

    def expired(self, now: float) -> list[Owed]:
        """What will not be waited for any more."""
        return [o for o in self._owed.values() if o.deadline <= now]

    def next_look(self, known: Set[int] = frozenset()) -> float | None:
        """The next moment at which one of them becomes overdue or expires."""
        return min(
            (o.deadline if o.sequence in known else o.overdue for o in self._owed.values()),
            default=None,
        )


def stale(owed: Owed, layer: int, header: ReplyHeader) -> str | None:
    """Why a reply is not the one that is owed of a layer (it is dropped then), or None."""
    if header.sequence != owed.sequence:
        return f"reply of sequence {header.sequence}, expected {owed.sequence}"
    if header.incarnation != owed.incarnation:
        return f"reply of incarnation {header.incarnation}, expected {owed.incarnation}"
    if header.epoch != owed.epoch:
        return f"reply of epoch {header.epoch}, expected {owed.epoch}"
    if header.layer != layer:
        return f"reply of layer {header.layer}, expected {layer}"
    return None


def refusal(owed: Owed, header: ReplyHeader, dtype: int, hidden: int) -> str | None:
    """Why the reply that is owed brings no rows that could be used, or None."""
    if header.status != wire.STATUS_OK:
        return REFUSALS.get(header.status, f"unknown status {header.status}")
    if header.pairs != owed.pairs or header.hidden != hidden or header.dtype != dtype:
        return (
            f"its reply has {header.pairs} rows of {header.hidden}, dtype {header.dtype}; "
            f"expected {owed.pairs} of {hidden}, dtype {dtype}"
        )
    return None
