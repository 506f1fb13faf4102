"""How a client joins a server over TCP, for transports that go on without the Unix socket of shm.

Mutual challenge (`handshake.py`) → client: who it is, whom it wants, the geometry, and an offer →
server: its own offer, or no, with the reason. What an offer holds is the transport's business (a
token for a second connection; queue pair numbers and memory keys): since it can open memory, both
messages are encrypted and authenticated with the session's key (AES-GCM, a counter as nonce).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tarragon_hpc.errors import AuthError, ConnectRefused, FrameError
from tarragon_hpc.transport import handshake
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.blocking import receive_exactly, send_all

if TYPE_CHECKING:
    import socket

MAX_FRAME = 64 << 10
_LENGTH = struct.Struct("<I")
_TAG = 16


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Client to server. `kind`: of the transport, or what else this connection is for."""

    kind: str
    worker: str
    incarnation: int
    peer: str
    peer_incarnation: int
    slots: int
    request_bytes: int
    reply_bytes: int
    offer: dict[str, str] = {}

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.slots, self.request_bytes, self.reply_bytes)


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Server to client."""

    refusal: str | None = None
    offer: dict[str, str] = {}


class Session:
    """One connection after the challenge: sealed messages, strictly in order, each way.

    Both ends make one; `client` says which this is. All methods raise OSError at the deadline or
    if the connection breaks, FrameError for anything that is not as it should be, AuthError for
    what was not sealed by the other end of this very session.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, client: bool) -> None:
        self._sock = sock
        self._cipher = AESGCM(key)
        self._out, self._in = (b"cs", b"sc") if client else (b"sc", b"cs")
        self._sent = self._received = 0

    @classmethod
    def ask(cls, sock: socket.socket, secret: bytes, deadline: float) -> Session:
        """The client's end, after the challenge. Raises AuthError, FrameError or OSError."""
        return cls(sock, handshake.ask(sock, secret, deadline), client=True)

    @classmethod
    def hear(cls, sock: socket.socket, secret: bytes, deadline: float) -> Session:
        """The server's end, after the challenge. Raises AuthError, FrameError or OSError."""
        return cls(sock, handshake.hear(sock, secret, deadline), client=False)

    def join(self, join: Join, deadline: float) -> Answer:
        """Client: ask to join. Raises ConnectRefused."""
        self._send(msgspec.msgpack.encode(join), deadline)
        return self.answer(deadline)

    def answer(self, deadline: float) -> Answer:
        """Client: the next answer of the server. Raises ConnectRefused if it is a refusal."""
        answer = handshake.decode(self._receive(deadline), Answer)
        if answer.refusal is not None:
            raise ConnectRefused(answer.refusal)
        return answer

    def joining(self, deadline: float) -> Join:
        """Server: what the client wants."""
        return handshake.decode(self._receive(deadline), Join)

    def reply(self, answer: Answer, deadline: float) -> None:
        """Server: an answer."""
        self._send(msgspec.msgpack.encode(answer), deadline)

    def _send(self, body: bytes, deadline: float) -> None:
        self._sent += 1
        sealed = self._cipher.encrypt(_nonce(self._out, self._sent), body, None)
        send_all(self._sock, _LENGTH.pack(len(sealed)) + sealed, deadline)

    def _receive(self, deadline: float) -> bytes:
        size = _LENGTH.unpack(receive_exactly(self._sock, _LENGTH.size, deadline))[0]
        if not _TAG <= size <= MAX_FRAME:
            raise FrameError(f"frame of {size} bytes; allowed are {_TAG} to {MAX_FRAME}")
        sealed = receive_exactly(self._sock, size, deadline)
        self._received += 1
        try:
            return self._cipher.decrypt(_nonce(self._in, self._received), sealed, None)
        except InvalidTag:
            raise AuthError("a message was not sealed by the other end") from None


def _nonce(direction: bytes, number: int) -> bytes:
    return direction + number.to_bytes(10, "big")
