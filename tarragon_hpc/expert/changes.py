"""What other threads want changed in the expert loop, made by its own between two batches."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    # Returns the experts that are served then.
    Change: TypeAlias = Callable[[], frozenset[int]]
    Done: TypeAlias = Future[frozenset[int]]


class Changes:
    """Changes in order of arrival. `submit` from any thread, the rest in the loop's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Change, Done]] = deque()
        self._closed: str | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __repr__(self) -> str:
        return f"Changes({len(self._waiting)} waiting)"

    def submit(self, change: Change) -> Done:
        """Have a change made; the future holds what it returns or raises."""
        done: Done = Future()
        with self._lock:
            if self._closed is None:
                self._waiting.append((change, done))
                return done
        done.set_exception(ClusterError(self._closed))
        return done

    def apply(self) -> None:
        """Make all that wait."""
        while self._waiting:
            change, done = self._waiting.popleft()
            try:
                done.set_result(change())
            except (RuntimeError, MemoryError) as error:  # no room on the device, say
                done.set_exception(error)

    def close(self, reason: str) -> None:
        """Make none any more; those that wait and those to come fail with ClusterError."""
        with self._lock:
            self._closed = reason
        while self._waiting:
            _, done = self._waiting.popleft()
            done.set_exception(ClusterError(reason))
