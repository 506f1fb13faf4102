"""A server's front door on a listening socket: a thread per handshake, and who has joined."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.transport.admission import Admission

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.transport.base import ServerChannel
    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.monitor import Monitor
    from tarragon_hpc.transport.slot_channel import SlotServer

HANDSHAKE_S = 10.0
MAX_JOINING = 64

log = logging.getLogger(__name__)


class Reception:
    """What the listeners of all transports have in common. Owns the listening socket.

    join: called in a thread of its own for every connection, with its socket and a deadline, which
    it either hands to a channel (and says so by `admit` or `keep`) or leaves to be closed; raises
    OSError, FrameError, AuthError or ConnectFailed
    """

    def __init__(
        self,
        sock: socket.socket,
        worker: str,
        incarnation: int,
        bell: ProcessDoorbell,
        monitor: Monitor,
        join: Callable[[socket.socket, float], None],
    ) -> None:
        self.closed = False
        self._socket = sock
        self._worker = worker
        self._bell = bell
        self._monitor = monitor
        self._join = join
        self._lock = threading.Lock()
        self._admission: Admission[SlotServer] = Admission(worker, incarnation)
        self._accepted: list[ServerChannel] = []
        # Handshakes under way; no socket any more once it is somebody else's.
        self._joining: dict[threading.Thread, socket.socket | None] = {}
        self._aside: set[threading.Thread] = set()
        sock.setblocking(False)
        monitor.watch(sock.fileno(), self._on_connection)

    def __repr__(self) -> str:
        return f"Reception({self._worker}, {'closed' if self.closed else 'open'})"

    def accepted(self) -> list[ServerChannel]:
        """See `base.Listener`."""
        if not self._accepted:  # asked in every round of the expert loop
            return []
        with self._lock:
            joined, self._accepted = self._accepted, []
        return joined

    def refusal(self, client: str, incarnation: int, server: str, number: int) -> str | None:
        """See `Admission.refusal`."""
        return self._admission.refusal(client, incarnation, server, number)

    def admit(
        self, channel: SlotServer, server: tuple[str, int], start: Callable[[], None]
    ) -> None:
        """A client joins, in its handshake's thread: `start` completes the handshake and gives the
        socket away. Nobody else joins meanwhile. Raises ConnectFailed and what `start` raises.
        """
        client, incarnation = channel.peer, channel.peer_incarnation
        with self._lock:
            refusal = (
                "the listener is closed"
                if self.closed
                else self.refusal(client, incarnation, *server)
            )
            if refusal is not None:
                raise ConnectFailed(refusal)
            start()
            self._joining[threading.current_thread()] = None
            older = self._admission.admit(channel)
            self._accepted.append(channel)
        for stale in older:
            stale.cut(f"replaced by {client}.{incarnation}")
        self._bell.ring()

    def step_aside(self) -> None:
        """A handshake with somebody who knows the secret waits for another one, in its thread: it
        does not count any more."""
        with self._lock:
            self._aside.add(threading.current_thread())

    def keep(self) -> None:
        """The handshake's socket has become part of something else, in its thread."""
        with self._lock:
            self._joining[threading.current_thread()] = None

    def close(self) -> None:
        """Stop accepting; channels live on, those not yet fetched by `accepted` are closed."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            joining = dict(self._joining)
        self._monitor.forget(self._socket.fileno())
        self._socket.close()
        for thread, sock in joining.items():
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread.join()
        for channel in self.accepted():
            channel.close()

    def _on_connection(self) -> None:
        """In the monitor's thread. A handshake blocks, so each gets a thread of its own."""
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return  # the client has gone again, or this listener has
        with self._lock:
            if self.closed or not self._make_room():
                sock.close()
                return
            thread = threading.Thread(
                target=self._shake, args=(sock,), name=f"{self._worker}-join", daemon=True
            )
            self._joining[thread] = sock
            thread.start()

    def _make_room(self) -> bool:
        """Under the lock: those that have waited longest go, as in `wire.strangers`."""
        strangers = {t: s for t, s in self._joining.items() if t not in self._aside}
        surplus = len(strangers) + 1 - MAX_JOINING
        if surplus > 0:
            for sock in islice((s for s in strangers.values() if s is not None), surplus):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        return surplus <= MAX_JOINING

    def _shake(self, sock: socket.socket) -> None:
        me = threading.current_thread()
        try:
            self._join(sock, time.monotonic() + HANDSHAKE_S)
        except (OSError, FrameError, AuthError, ConnectFailed) as error:
            log.warning("%s refused a connection: %s", self._worker, error)
        finally:
            with self._lock:
                self._aside.discard(me)
                mine = self._joining.pop(me)
            if mine is not None:
                mine.close()
