"""The mutual challenge (`wire/auth.py`) over a blocking socket, purpose "data".

Nothing else is read before it; both halves return the key of the session. Here is also how the
messages that follow it are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from tarragon_hpc.errors import FrameError
from tarragon_hpc.transport.blocking import receive_exactly, send_all
from tarragon_hpc.wire import auth

if TYPE_CHECKING:
    import socket

PURPOSE = b"data"

T = TypeVar("T")


def ask(sock: socket.socket, secret: bytes, deadline: float) -> bytes:
    """The client's half. Raises AuthError, FrameError or OSError."""
    shake = auth.ClientHandshake(secret, PURPOSE)
    send_all(sock, shake.hello(), deadline)
    challenge = receive_exactly(sock, auth.CHALLENGE_BYTES, deadline)
    send_all(sock, shake.proof(challenge), deadline)
    if receive_exactly(sock, len(auth.OK), deadline) != auth.OK:
        raise FrameError("the server refused the handshake")
    return shake.key


def hear(sock: socket.socket, secret: bytes, deadline: float) -> bytes:
    """The server's half. Raises AuthError, FrameError or OSError."""
    shake = auth.ServerHandshake(secret, PURPOSE)
    hello = receive_exactly(sock, auth.HELLO_BYTES, deadline)
    send_all(sock, shake.challenge(hello), deadline)
    shake.verify(receive_exactly(sock, auth.PROOF_BYTES, deadline))
    send_all(sock, auth.OK, deadline)
    return shake.key


def decode(body: bytes, kind: type[T]) -> T:
    """A message of a kind (a msgspec.Struct, MessagePack). Raises FrameError."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a valid {kind.__name__.lower()}: {error}") from None
