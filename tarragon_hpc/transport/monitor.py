"""A thread that sleeps in epoll_wait(2) until a watched descriptor has something to tell.

It runs while anything is watched and costs nothing otherwise.
"""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Monitor:
    """Calls back from its thread when a descriptor becomes readable or hangs up.

    Callbacks must not block, and must bear being called once more right after `forget` (for them
    that is: look before you act). Events keep coming until the descriptor is read or forgotten.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Monitor({self._name}, {len(self._callbacks)} watched)"

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Start watching; the caller forgets the descriptor before closing it."""
        with self._lock:
            if self._epoll is None:
                self._start()
            assert self._epoll is not None
            self._callbacks[fd] = callback
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def forget(self, fd: int) -> None:
        """Stop watching; a descriptor that is not watched is ignored.

        With the last one the thread ends, and has ended on return unless this is that thread.
        """
        with self._lock:
            if self._callbacks.pop(fd, None) is None or self._epoll is None:
                return
            self._epoll.unregister(fd)
            if self._callbacks:
                return
            thread, self._epoll = self._thread, None
            os.eventfd_write(self._wake, 1)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(
            target=self._run, args=(self._epoll, self._wake), name=self._name, daemon=True
        )
        self._thread.start()

    def _run(self, epoll: select.epoll, wake: int) -> None:
        try:
            while True:
                for fd, _ in epoll.poll():
                    if fd == wake:
                        return
                    with self._lock:
                        callback = self._callbacks.get(fd) if self._epoll is epoll else None
                    if callback is not None:
                        callback()
        finally:
            epoll.close()
            os.close(wake)
