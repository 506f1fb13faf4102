"""Connections that have not shown yet what they are worth: a bounded number, the newest ones.

Whoever means it is through in milliseconds. So when a flood of half-open connections fills the
room, the one that has waited longest makes place, and nobody else is turned away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Strangers:
    """At most `limit` of them. One thread, or under the caller's lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Hashable, Callable[[], object]] = {}

    def __repr__(self) -> str:
        return f"Strangers({len(self._waiting)} of {self._limit})"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, who: Hashable, close: Callable[[], object]) -> bool:
        """One more, the newest of all; False: for it, `close` of the oldest was called."""
        self._waiting[who] = close
        if len(self._waiting) <= self._limit:
            return True
        oldest = next(iter(self._waiting))
        self._waiting.pop(oldest)()
        return False

    def discard(self, who: Hashable) -> None:
        """It is no stranger any more, or is gone. Safe to call twice."""
        self._waiting.pop(who, None)
