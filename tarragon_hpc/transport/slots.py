"""Bookkeeping of a channel's slots: the specification of the native one, and what inproc uses.

The n-th request (n = 1, 2, …) goes to slot (n-1) mod slots with sequence number n, and the reply
to it carries the same number. Pure: whether a reply has arrived is for the caller to say.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class SlotState(Enum):
    """A slot as the client sees it (the diagram is in `base.py`)."""

    FREE = auto()
    FILLING = auto()
    POSTED = auto()
    ANSWERED = auto()
    ABANDONED = auto()


class ClientLedger:
    """Which slot is in which state. `arrived(slot, sequence)`: is that reply there?"""

    def __init__(self, slots: int, arrived: Callable[[int, int], bool]) -> None:
        self._arrived = arrived
        self._states = [SlotState.FREE] * slots
        self._sequences = [0] * slots
        self._next = 0

    def __repr__(self) -> str:
        return f"ClientLedger({', '.join(s.name.lower() for s in self._states)})"

    def acquire(self) -> int | None:
        """The next slot, or None while it is in use."""
        slot = self._next % len(self._states)
        if self._states[slot] is SlotState.ABANDONED and self._has_arrived(slot):
            self._states[slot] = SlotState.FREE
        if self._states[slot] is not SlotState.FREE:
            return None
        self._next += 1
        self._states[slot] = SlotState.FILLING
        self._sequences[slot] = self._next
        return slot

    def post(self, slot: int) -> int:
        """Returns the sequence number the request is posted with."""
        self._expect(slot, "post", SlotState.FILLING)
        self._states[slot] = SlotState.POSTED
        return self._sequences[slot]

    def reply(self, slot: int) -> bool:
        """Whether the reply is there."""
        self._expect(slot, "reply", SlotState.POSTED, SlotState.ANSWERED)
        if self._states[slot] is SlotState.POSTED and self._has_arrived(slot):
            self._states[slot] = SlotState.ANSWERED
        return self._states[slot] is SlotState.ANSWERED

    def release(self, slot: int) -> None:
        """The reply has been read."""
        self._expect(slot, "release", SlotState.ANSWERED)
        self._states[slot] = SlotState.FREE

    def abandon(self, slot: int) -> None:
        """The reply is not wanted."""
        self._expect(slot, "abandon", SlotState.POSTED, SlotState.ANSWERED)
        answered = self._states[slot] is SlotState.ANSWERED
        self._states[slot] = SlotState.FREE if answered else SlotState.ABANDONED

    def owed(self) -> int:
        """How many posted or abandoned slots have no reply yet."""
        waiting = (SlotState.POSTED, SlotState.ABANDONED)
        return sum(
            state in waiting and not self._has_arrived(slot)
            for slot, state in enumerate(self._states)
        )

    def _has_arrived(self, slot: int) -> bool:
        return self._arrived(slot, self._sequences[slot])

    def _expect(self, slot: int, what: str, *allowed: SlotState) -> None:
        if not 0 <= slot < len(self._states):
            raise IndexError("no such slot")
        state = self._states[slot]
        if state not in allowed:
            raise RuntimeError(f"{what} of slot {slot}, which is {state.name.lower()}")


class ServerLedger:
    """Which request comes next, and which slots owe a reply."""

    def __init__(self, slots: int) -> None:
        self._owed: list[int] = [0] * slots
        self._next = 0

    def next(self) -> tuple[int, int]:
        """(slot, sequence) of the request that is due next."""
        return self._next % len(self._owed), self._next + 1

    def take(self) -> bool:
        """That request has come. False: its slot still owes a reply, the peer broke the rules."""
        slot, sequence = self.next()
        if self._owed[slot]:
            return False
        self._owed[slot] = self._next = sequence
        return True

    def send(self, slot: int) -> int:
        """Returns the sequence number of the reply."""
        if not 0 <= slot < len(self._owed):
            raise IndexError("no such slot")
        sequence, self._owed[slot] = self._owed[slot], 0
        if not sequence:
            raise RuntimeError(f"send of slot {slot}, which owes no reply")
        return sequence
