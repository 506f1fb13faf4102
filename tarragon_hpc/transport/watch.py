"""The fastest sign of a peer's death on the same node.

The Unix socket of the handshake stays open: the kernel closes it with the process. pidfd_open(2)
tells the same even if a child of the process has inherited the socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from tarragon_hpc.transport import unix

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tarragon_hpc.transport.monitor import Monitor

BYE = b"\x00"
PROBE = b"\x01"
ALIVE = b"\x02"


class PeerWatch:
    """Tells once, from the monitor's thread, when the process at the other end is gone; answers its
    probes there, and tells of answers to ours.

    Owns the socket from now on.
    """

    def __init__(
        self,
        sock: socket.socket,
        monitor: Monitor,
        on_gone: Callable[[str], None],
        on_answer: Callable[[], None],
    ) -> None:
        self._on_answer = on_answer
        self._sock = sock
        self._monitor = monitor
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._pidfd: int | None = None
        self._open = True
        with contextlib.suppress(OSError):  # another pid namespace: the socket has to do
            self._pidfd = os.pidfd_open(unix.credentials(sock).pid)
        sock.setblocking(False)
        with self._lock:  # callbacks wait until both are registered
            monitor.watch(sock.fileno(), self._on_socket)
            if self._pidfd is not None:
                monitor.watch(self._pidfd, self._on_exit)

    def _on_socket(self) -> None:
        with self._lock:
            if not self._open:
                return
            try:
                data = self._sock.recv(1)
            except BlockingIOError:
                return
            except OSError as error:
                reason = f"connection lost ({error.strerror})"
            else:
                if data == PROBE:
                    self._say(ALIVE)
                    return
                reason = {b"": "process gone (connection closed)", BYE: "closed by peer"}.get(
                    data, "" if data == ALIVE else "peer sent garbage"
                )
        if reason:
            self._tell(reason)
        else:
            self._on_answer()

    def probe(self) -> None:
        """Ask the process at the other end for a sign of life. From any thread."""
        with self._lock:
            if self._open:
                self._say(PROBE)

    def _say(self, what: bytes) -> None:
        # A full socket belongs to a peer that does not read: it will be found silent.
        with contextlib.suppress(OSError):
            self._sock.send(what)

    def _on_exit(self) -> None:
        with self._lock:
            if not self._open or self._pidfd is None:
                return
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(0):
                return
        # An orderly farewell may lie in the socket; it tells more than the exit does.
        self._on_socket()
        self._tell("process gone (exited)")

    def _tell(self, reason: str) -> None:
        self._on_gone(reason)
        self.stop()

    def stop(self) -> None:
        """Say farewell and let go of the descriptors. Safe to call twice and from any thread."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._monitor.forget(self._sock.fileno())
        if self._pidfd is not None:
            self._monitor.forget(self._pidfd)
            os.close(self._pidfd)
        self._say(BYE)
        self._sock.close()
