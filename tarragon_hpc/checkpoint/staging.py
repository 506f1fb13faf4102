"""Memory for what is on its way to the stores: set aside once, bounded, lent in contiguous areas.

First fit from the bottom: batches live for a step or two, so the same few pages are used again and
again and stay in the CPU's caches, and the rest of the memory is not even backed by pages until a
store falls behind. Areas come back in any order: a slow store must not hold up the others.
"""

from __future__ import annotations

import threading
from bisect import insort
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGN = 64


class Area(NamedTuple):
    """Bytes start … start+nbytes-1 of the staging memory; `start` is a multiple of ALIGN."""

    start: int
    nbytes: int


class Staging:
    """`nbytes` of memory. `reserve` and `release` may be called by different threads."""

    def __init__(self, nbytes: int) -> None:
        raw = np.zeros(nbytes + ALIGN, np.uint8)
        shift = -raw.ctypes.data % ALIGN
        self.memory: NDArray[np.uint8] = raw[shift : shift + nbytes]
        self._lent: list[Area] = []  # by start
        self._used = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Staging({self._used} of {len(self.memory)} bytes, {len(self._lent)} areas)"

    @property
    def used(self) -> int:
        """Bytes that are lent."""
        return self._used

    def reserve(self, nbytes: int) -> Area | None:
        """An area of at least `nbytes`, which the caller gives back; None: no room."""
        size = max(ALIGN, (nbytes + ALIGN - 1) // ALIGN * ALIGN)
        with self._lock:
            start = 0
            for area in self._lent:
                if area.start - start >= size:
                    break
                start = area.start + area.nbytes
            if start + size > len(self.memory):
                return None
            found = Area(start, size)
            insort(self._lent, found)
            self._used += size
            return found

    def release(self, area: Area) -> None:
        """Give an area back. Raises ValueError if it is not lent."""
        with self._lock:
            self._lent.remove(area)
            self._used -= area.nbytes
