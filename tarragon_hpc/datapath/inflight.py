"""What the EWs owe a dispatch: unanswered messages, their deadlines, and which replies count.

Pure: the clock is an argument, slots and buffers are somebody else's. One `Inflight` per dispatch.
Rerouting asks `owed_by` a lost EW which parts (of which chunk's assignment) are unanswered,
withdraws them and records those of the new assignment; a reply to a withdrawn message is late and
is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from tarragon_hpc.wire.dispatch import ReplyHeader

REFUSALS = {
    wire.STATUS_UNKNOWN_EXPERT: "it does not hold a wanted expert",
    wire.STATUS_BAD_REQUEST: "it finds the request invalid",
    wire.STATUS_STALE: "it finds the request stale",
    wire.STATUS_FAILED: "its computation failed",
}


class Owed(NamedTuple):
    """One message whose reply is owed. (worker, slot) is unique among those unanswered.

    incarnation:    of the worker
    sequence:       of the message; unique in the life of this AW
    chunk, part:    which rows: the part of the chunk's assignment
    pairs:          output rows that are owed
    sent, deadline: seconds on the caller's clock
    """

    worker: str
    incarnation: int
    slot: int
    sequence: int
    chunk: int
    part: int
    pairs: int
    sent: float
    deadline: float


class Inflight:
    """The unanswered messages of one dispatch, in the order they were sent."""

    __slots__ = ("_of_chunk", "unanswered")

    def __init__(self) -> None:
        self.unanswered: list[Owed] = []
        self._of_chunk: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"Inflight({', '.join(f'{o.worker}[{o.slot}]' for o in self.unanswered)})"

    def sent(self, owed: Owed) -> None:
        """A message is on its way."""
        self.unanswered.append(owed)
        self._of_chunk[owed.chunk] = self._of_chunk.get(owed.chunk, 0) + 1

    def settled(self, owed: Owed) -> bool:
        """Its reply has come and counts. True if nothing else is owed to its chunk now."""
        self.withdraw(owed)
        return self._of_chunk[owed.chunk] == 0

    def withdraw(self, owed: Owed) -> None:
        """Its reply is not awaited any more: rerouted, or given up."""
        self.unanswered.remove(owed)
        self._of_chunk[owed.chunk] -= 1

    def owed_by(self, worker: str) -> list[Owed]:
        """What one EW has not answered."""
        return [o for o in self.unanswered if o.worker == worker]

    def overdue(self, now: float) -> list[Owed]:
        """What should have been answered by now."""
        return [o for o in self.unanswered if o.deadline <= now]

    def next_deadline(self) -> float | None:
        """The first deadline among the unanswered."""
        return min((o.deadline for o in self.unanswered), default=None)


def stale(owed: Owed, header: ReplyHeader, epoch: int) -> str | None:
    """Why a reply is not the one that is owed (it is dropped then), or None.

    epoch: of the table the message was sent under
    """
    if header.sequence != owed.sequence:
        return f"reply of sequence {header.sequence}, expected {owed.sequence}"
    if header.incarnation != owed.incarnation:
        return f"reply of incarnation {header.incarnation}, expected {owed.incarnation}"
    if header.epoch != epoch:
        return f"reply of epoch {header.epoch}, expected {epoch}"
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
