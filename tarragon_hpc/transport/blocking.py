"""Blocking sockets with one deadline for everything (a time of time.monotonic(), in seconds)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import FrameError

if TYPE_CHECKING:
    import socket


def arm(sock: socket.socket, deadline: float) -> None:
    """The next call may block until then. Raises TimeoutError if that is past."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the peer was too slow")
    sock.settimeout(remaining)


def send_all(sock: socket.socket, data: bytes, deadline: float) -> None:
    """Raises OSError."""
    arm(sock, deadline)
    sock.sendall(data)


def receive_exactly(sock: socket.socket, nbytes: int, deadline: float) -> bytes:
    """Raises OSError; FrameError if the peer closes before."""
    data = b""
    while len(data) < nbytes:
        arm(sock, deadline)
        piece = sock.recv(nbytes - len(data))
        if not piece:
            raise FrameError("the peer closed the connection")
        data += piece
    return data
