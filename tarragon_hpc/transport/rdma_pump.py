"""The thread that looks for the completions of all RDMA links of a process.

Arrivals need none of it: they are seen in memory, by the process's doorbell. It looks every so
often while something is under way and sleeps otherwise; it runs while there are links.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.002


class Link(Protocol):
    """What the pump works on; see `rdma_link.RdmaLink`."""

    @property
    def busy(self) -> bool: ...

    def look(self, now: float) -> bool: ...


class _Turn:
    """One thread of the pump, and its own bell: an earlier one may not have ended yet."""

    def __init__(self, pump: RdmaPump, name: str) -> None:
        self.posted = threading.Event()
        self.asleep = False
        self.thread = threading.Thread(target=pump.run, args=[self], name=name, daemon=True)


class RdmaPump:
    """Calls `look` of its links. `wake` after anything was posted, from any thread."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._links: tuple[Link, ...] = ()
        self._turn: _Turn | None = None

    def __repr__(self) -> str:
        return f"RdmaPump({self._name}, {len(self._links)} links)"

    def add(self, link: Link) -> None:
        """Look after a link from now on."""
        with self._lock:
            self._links = (*self._links, link)
            if self._turn is None:
                self._turn = _Turn(self, self._name)
                self._turn.thread.start()
            self._turn.posted.set()

    def forget(self, link: Link) -> None:
        """Do not; links that it does not know are ignored. With the last one the thread ends, and
        has ended on return unless this is that thread.
        """
        with self._lock:
            if link not in self._links:
                return
            self._links = tuple(other for other in self._links if other is not link)
            if self._links or self._turn is None:
                return
            turn, self._turn = self._turn, None
            turn.posted.set()
        if turn.thread is not threading.current_thread():
            turn.thread.join()

    def wake(self) -> None:
        """Something is under way. Cheap while the thread is looking anyway."""
        turn = self._turn
        if turn is not None and turn.asleep:
            turn.posted.set()

    def run(self, turn: _Turn) -> None:
        """The thread of this turn, until it is over."""
        while self._turn is turn:
            now = self._clock()
            looks = [link.look(now) for link in self._links]
            if any(looks):
                time.sleep(POLL_S)
                continue
            turn.posted.clear()
            turn.asleep = True
            # Whatever was posted before `asleep` was set has to be seen here: nobody wakes for it.
            if self._turn is turn and not any(link.busy for link in self._links):
                turn.posted.wait()
            turn.asleep = False
