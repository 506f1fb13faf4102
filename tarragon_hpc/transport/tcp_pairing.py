"""How the two connections of one client find each other at a server.

The first one gets a token, which opens the door to one second connection, for as long as the first
waits for it.
"""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.errors import ConnectFailed, FrameError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType

    from tarragon_hpc.transport.net_join import Join, Session

CONTROL = "tcp"  # `Join.kind` of the first connection
DATA = "tcp-data"  # … and of the second
TOKEN = "token"


def second_join(first: Join, token: str) -> Join:
    """What the second connection of a client says."""
    return msgspec.structs.replace(first, kind=DATA, offer={TOKEN: token})


class Pairing:
    """The first connections that wait for their second ones. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, FirstConnection] = {}

    def __repr__(self) -> str:
        return f"Pairing({len(self._waiting)} waiting)"

    def first(self, join: Join) -> FirstConnection:
        """A first connection, whose token is valid until its block ends."""
        first = FirstConnection(self, join)
        with self._lock:
            self._waiting[first.token] = first
        return first

    def second(
        self, join: Join, sock: socket.socket, session: Session, keep: Callable[[], None]
    ) -> None:
        """Give a second connection to the thread of the first, which owns the socket when `keep`
        is called. Raises ConnectFailed if none is waiting for it."""
        token = join.offer.get(TOKEN, "")
        with self._lock:
            first = self._waiting.get(token)
            if first is None or join != second_join(first.join, token):
                raise ConnectFailed("no first connection waits for this one")
            keep()
            del self._waiting[token]
            first.arrived(sock, session)

    def forget(self, token: str) -> None:
        """The token is not valid any more."""
        with self._lock:
            self._waiting.pop(token, None)


class FirstConnection:
    """A context: at its end the token is worth nothing and the second socket closed, if there is
    one that nobody has detached."""

    def __init__(self, pairing: Pairing, join: Join) -> None:
        self.token = secrets.token_hex(16)
        self.join = join
        self._pairing = pairing
        self._second: tuple[socket.socket, Session] | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

    def __enter__(self) -> FirstConnection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pairing.forget(self.token)
        os.close(self._wake)
        if self._second is not None:
            self._second[0].close()

    def arrived(self, sock: socket.socket, session: Session) -> None:
        """In the second connection's thread, before the token is forgotten."""
        self._second = sock, session
        os.eventfd_write(self._wake, 1)

    def wait(self, sock: socket.socket, deadline: float) -> tuple[socket.socket, Session]:
        """The second connection, while the first one's client has nothing else to say.

        Raises TimeoutError at the deadline, FrameError if the client left or spoke.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(sock, select.POLLIN | select.POLLRDHUP)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if self._second is not None:
            return self._second
        if time.monotonic() >= deadline:
            raise TimeoutError("the client did not bring its second connection")
        raise FrameError("the client left before its second connection came")
