"""asyncio glue: an authenticated, framed connection in one class for both ends.

A dead process is an EOF here, which is the control plane's fastest evidence (DESIGN §8).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Generic, TypeVar

from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.wire import auth, tls
from tarragon_hpc.wire.codec import FrameDecoder, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tarragon_hpc.wire.common import Message

CONTROL = b"control"
HANDSHAKE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
_READ = 1 << 18
# A peer whose host is silent: looked after if nothing is sent for so long, and so often; and how
# long the head's kernel tries to deliver.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
_DELIVER_MS = 30_000

M = TypeVar("M")


class Connection(Generic[M]):
    """One authenticated connection; `M` is the union of messages this end receives.

    `send` never waits: messages go to asyncio's write buffer, whose size `backlog` tells.
    Used from one event loop only.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: FrameDecoder[M],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        peer = writer.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"
        raw = writer.get_extra_info("socket")
        tcp = raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6)
        self._socket = raw if tcp else None
        if tcp:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                raw.setsockopt(socket.IPPROTO_TCP, option, value)

    def __repr__(self) -> str:
        return f"Connection({self.peer}, backlog={self.backlog})"

    @property
    def backlog(self) -> int:
        """Bytes accepted by `send` that the kernel has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    def unheard_s(self) -> float:
        """For how long the peer's host has acknowledged nothing, though it was sent something.

        A host answers for a process that is stopped: that one is not silent in this sense.
        """
        if self._socket is None:
            return 0.0
        try:
            return unheard_s(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60))
        except OSError:  # closed
            return 0.0

    def send(self, *messages: Message) -> None:
        """Queue messages; silently dropped once the connection is closed (the reader tells)."""
        if not self._writer.is_closing():
            self._writer.write(b"".join(encode(m) for m in messages))

    async def messages(self) -> AsyncIterator[M]:
        """Messages until the peer goes away (normal end). Raises FrameError on garbage."""
        while True:
            try:
                data = await self._reader.read(_READ)
            except OSError:
                return
            if not data:
                return
            for message in self._decoder.feed(data):
                yield message

    async def close(self) -> None:
        """Flush what was sent, then close, if the peer lets us. Safe to call twice."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
        except OSError:
            pass


def unheard_s(info: bytes) -> float:
    """The same from Linux's `struct tcp_info` (linux/tcp.h).

    Only if data was sent again twice: the last answer may be old because nothing was said.
    """
    retransmits, last_ack_ms = info[2], struct.unpack_from("=I", info, 56)[0]
    return last_ack_ms / 1000 if retransmits >= 2 else 0.0


async def connect(
    host: str,
    port: int,
    secret: bytes,
    decoder: FrameDecoder[M],
    *,
    timeout_s: float = 10.0,
    context: ssl.SSLContext | None = None,
) -> Connection[M]:
    """Connect and authenticate; `context`: how to speak TLS, None: not at all.

    Raises ConnectFailed or AuthError.
    """
    name = None if context is None else tls.NAME
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=name
            )
            try:
                shake = auth.ClientHandshake(secret, CONTROL)
                writer.write(shake.hello())
                writer.write(shake.proof(await reader.readexactly(auth.CHALLENGE_BYTES)))
                if await reader.readexactly(1) != auth.OK:
                    raise AuthError("the server refused the handshake")
            except BaseException:
                writer.close()
                raise
    except ssl.SSLError as error:
        raise tls.refusal(error) from None
    except (asyncio.IncompleteReadError, ConnectionResetError):
        other = "no TLS" if context else "TLS"
        why = f"it hung up in the handshake, as one does that expects {other}"
        raise ConnectFailed(f"{host}:{port}: {why}") from None
    except (OSError, TimeoutError) as error:
        raise ConnectFailed(f"{host}:{port}: {str(error) or type(error).__name__}") from None
    return Connection(reader, writer, decoder)


async def accept(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    secret: bytes,
    decoder: FrameDecoder[M],
    context: ssl.SSLContext | None = None,
) -> Connection[M]:
    """Authenticate a connection that came in, of which nothing has been read; `context`: in TLS.

    Raises AuthError; the socket is then closed.
    """
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            if context is not None:
                await writer.start_tls(context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S)
            shake = auth.ServerHandshake(secret, CONTROL)
            writer.write(shake.challenge(await reader.readexactly(auth.HELLO_BYTES)))
            shake.verify(await reader.readexactly(auth.PROOF_BYTES))
            writer.write(auth.OK)
    except ssl.SSLError as error:
        writer.close()
        raise tls.refusal(error) from None
    except (OSError, TimeoutError, asyncio.IncompleteReadError, AuthError, FrameError) as error:
        writer.close()
        raise AuthError(str(error) or type(error).__name__) from None
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DELIVER_MS)
    return Connection(reader, writer, decoder)
