"""How a client joins a shared-memory server, over a Unix stream socket in a private directory.

Same user id (SO_PEERCRED) → mutual challenge (`wire/auth.py`, purpose "data") → client: who it is,
whom it wants, the geometry, with descriptors of its reply ring and its doorbell → server: yes, with
descriptors of its request ring and its doorbell, or no, with the reason. One deadline for it all.
`life`: the sign of life in the sender's doorbell memory that the receiver shall watch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc import native
from tarragon_hpc.errors import ConnectFailed, ConnectRefused
from tarragon_hpc.transport import handshake, unix
from tarragon_hpc.transport.base import Geometry

if TYPE_CHECKING:
    import socket


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client to server."""

    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    slots: int
    request_bytes: int
    reply_bytes: int
    life: int

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.slots, self.request_bytes, self.reply_bytes)


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Server to client; without a refusal it carries descriptors."""

    refusal: str | None = None
    life: int = 0


def joint_refusal(life: int, fds: list[int]) -> str | None:
    """Why what came with a join or an answer cannot be used, or None."""
    if len(fds) != 2:
        return f"expected 2 descriptors, got {len(fds)}"
    if not 0 <= life < native.module.LIFE_WORDS:
        return f"sign of life {life}; allowed are 0 to {native.module.LIFE_WORDS - 1}"
    return None


def ask(
    sock: socket.socket, secret: bytes, join: Join, fds: list[int], deadline: float
) -> tuple[int, list[int]]:
    """The client's half; returns the server's sign of life and two descriptors to be closed.

    Raises ConnectFailed, AuthError, FrameError or OSError.
    """
    unix.check_same_user(sock)
    handshake.ask(sock, secret, deadline)
    unix.send_frame(sock, msgspec.msgpack.encode(join), fds, deadline)
    body, got = unix.receive_frame(sock, 2, deadline)
    try:
        answer = handshake.decode(body, Answer)
        if answer.refusal is not None:
            raise ConnectRefused(answer.refusal)
        if (problem := joint_refusal(answer.life, got)) is not None:
            raise ConnectFailed(problem)
    except BaseException:
        unix.close_all(got)
        raise
    return answer.life, got


def hear(sock: socket.socket, secret: bytes, deadline: float) -> tuple[Join, list[int]]:
    """The server's half up to the join and its descriptors, which the caller must close.

    Raises ConnectFailed, AuthError, FrameError or OSError.
    """
    unix.check_same_user(sock)
    handshake.hear(sock, secret, deadline)
    body, fds = unix.receive_frame(sock, 2, deadline)
    try:
        return handshake.decode(body, Join), fds
    except BaseException:
        unix.close_all(fds)
        raise


def reply(sock: socket.socket, answer: Answer, fds: list[int], deadline: float) -> None:
    """The server's last word. Raises OSError."""
    unix.send_frame(sock, msgspec.msgpack.encode(answer), fds, deadline)
