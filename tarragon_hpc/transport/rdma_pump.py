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


class RdmaPump:
    """Calls `look` of its links. `wake` after anything was posted, from any thread."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._links: tuple[Link, ...] = ()
        self._thread: threading.Thread | None = None
        self._posted = threading.Event()
        self._asleep = False

    def __repr__(self) -> str:
        return f"RdmaPump({self._name}, {len(self._links)} links)"

    def add(self, link: Link) -> None:
        """Look after a link from now on."""
        with self._lock:
            self._links = (*self._links, link)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._posted.set()

    def forget(self, link: Link) -> None:
        """Do not; links that it does not know are ignored. With the last one the thread ends, and
        has ended on return unless this is that thread.
        """
        with self._lock:
            if link not in self._links:
                return
            self._links = tuple(other for other in self._links if other is not link)
            if self._links:
                return
            thread, self._thread = self._thread, None
            self._posted.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def wake(self) -> None:
        """Something is under way. Cheap while the thread is looking anyway."""
        if self._asleep:
            self._posted.set()

    def _run(self) -> None:
        me = threading.current_thread()
        while self._thread is me:
            now = self._clock()
            looks = [link.look(now) for link in self._links]
            if any(looks):
                time.sleep(POLL_S)
                continue
            self._posted.clear()
            self._asleep = True
            # Whatever was posted before `_asleep` was set has to be seen here: nobody wakes for it.
            if self._thread is me and not any(link.busy for link in self._links):
                self._posted.wait()
            self._asleep = False
