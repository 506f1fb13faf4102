"""Counts of what went between an AW and the stores, and, if wanted, a record of it over time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Sent(NamedTuple):
    """A frame that was posted: when, in seconds of the clock; kind: as in `wire.kv`."""

    time: float
    nbytes: int
    kind: int


class Traffic:
    """Written by the courier's thread, read by any.

    sent_bytes: posted to stores; restored_tokens: rows of all layers that a fetch brought;
    bad_fetches: those that ended because rows were not what they should have been
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sent_bytes = 0
        self.restored_tokens = 0
        self.bad_fetches = 0
        self._clock = clock
        self._record: deque[Sent] | None = None

    def record(self, limit: int) -> None:
        """Keep the last `limit` frames from now on; 0: none."""
        self._record = deque(maxlen=limit) if limit else None

    def recorded(self) -> list[Sent]:
        """What is kept, oldest first."""
        return list(self._record or ())

    def sent(self, nbytes: int, kind: int) -> None:
        """A frame was posted."""
        self.sent_bytes += nbytes
        if self._record is not None:
            self._record.append(Sent(self._clock(), nbytes, kind))
