"""When rows may leave for the stores: while no dispatch to the experts is in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Gate:
    """Closed by the engine thread around a dispatch; the courier posts Puts while it is open.

    Both calls cost the engine thread nothing but the writing of an attribute, unless the courier
    waits: then `open` wakes it.

    closed: a dispatch is in flight; waiting: the courier wants to be woken
    """

    __slots__ = ("_wake", "closed", "waiting")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.closed = False
        self.waiting = False
        self._wake = wake

    def __repr__(self) -> str:
        return f"Gate({'closed' if self.closed else 'open'}{', waited for' * self.waiting})"

    def close(self) -> None:
        """A dispatch begins."""
        self.closed = True

    def open(self) -> None:
        """It is over."""
        self.closed = False
        if self.waiting:
            self.waiting = False
            self._wake()

    def shut(self) -> bool:
        """For the courier: whether the gate is closed; then `open` will wake it."""
        self.waiting = True  # before the look: should it be opened right after that, we are woken
        if self.closed:
            return True
        self.waiting = False
        return False
