"""The head's control port: workers and command-line clients connect here.

Nobody is listened to before the handshake; the first message decides what a connection is. Bytes
that are not valid messages end their connection and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.errors import AuthError, FrameError
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.strangers import Strangers
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_client import Done, Error, StatusReply
from tarragon_hpc.wire.to_head import (
    Failed,
    Note,
    Refused,
    Register,
    Resumed,
    Saved,
    ScaleRun,
    StandBy,
    StatusQuery,
    StopRun,
    Tokens,
)
from tarragon_hpc.wire.to_worker import Alive, Fence

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any

    from tarragon_hpc.orchestrator.service import Link, Report
    from tarragon_hpc.wire.stream import Connection
    from tarragon_hpc.wire.to_head import ToHead

# Connections that have not proved yet that they know the secret.
_MAX_STRANGERS = 128
_FIRST_MESSAGE_S = 5.0

FromClient = StatusQuery | StandBy | StopRun | ScaleRun | Note

log = logging.getLogger(__name__)


class Workers(Protocol):
    """Who hears of workers (the orchestrator)."""

    def admit(self, link: Link, register: Register) -> Incarnation | None:
        """A worker introduces itself; None: it must be fenced."""

    def hear(self, who: Incarnation) -> None:
        """A sign of life."""

    def receive(self, message: Report) -> None:
        """A report about the worker itself."""

    def lost(self, who: Incarnation, reason: str) -> None:
        """The connection of an admitted worker ended."""

    def scale(self, role: str, count: int) -> str | None:
        """Have so many workers of a role; why not, or None if the change is under way."""


class Sequences(Protocol):
    """Who hears of sequences (the gateway)."""

    def on_tokens(self, message: Tokens) -> None:
        """New tokens."""

    def on_refused(self, message: Refused) -> None:
        """A sequence that can never run."""

    def on_failed(self, message: Failed) -> None:
        """Sequences lost through no fault of theirs."""

    def on_resumed(self, message: Resumed) -> None:
        """A sequence that another AW had begun goes on."""


class ControlServer:
    """Accepts, authenticates and serves control connections. One event loop.

    For clients: `status` gives the content of a StatusReply; `stop` ends the run after at most so
    many seconds of draining, and returns when no worker is left. `tls`: None for plain TCP.
    `alive_s`: how often workers are given a sign of life; None: never, they need none.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        workers: Workers,
        sequences: Sequences,
        status: Callable[[], dict[str, Any]],
        stop: Callable[[float], Awaitable[None]],
        note: Callable[[Note], None],
        dropped: Callable[[str], None],
        saved: Callable[[Saved], None],
        tls: ssl.SSLContext | None = None,
        alive_s: float | None = None,
    ) -> None:
        self.standbys = 0
        """Standby heads that are connected."""
        self._secret = secret
        self._workers = workers
        self._sequences = sequences
        self._status = status
        self._stop = stop
        self._note = note
        self._dropped = dropped
        self._saved = saved
        self._tls = tls
        self._alive_s = alive_s
        self._beat: asyncio.Task[None] | None = None
        self._admitted: set[Connection[ToHead]] = set()
        self._strangers = Strangers(_MAX_STRANGERS)
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"ControlServer({len(self._open)} connections)"

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, host, port)
        if self._alive_s is not None:
            self._beat = asyncio.create_task(self._give_signs(self._alive_s), name="signs-of-life")
        name: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return name[1]

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        if self._beat is not None:
            self._beat.cancel()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _give_signs(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            for connection in self._admitted:
                connection.send(Alive())

    def _drop(self, cause: str, detail: str) -> None:
        log.info("connection dropped: %s: %s", cause, detail)
        self._dropped(cause)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="control-connection")
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bug while serving a control connection", exc_info=error)
            self._dropped("bug")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        if not self._strangers.add(me, me.cancel):
            self._drop("crowded", f"{len(self._strangers)} handshakes are under way")
        try:
            connection = await accept(reader, writer, self._secret, head_decoder(), self._tls)
        except AuthError as error:
            self._drop("handshake", str(error))
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        finally:
            self._strangers.discard(me)
        try:
            await self._introduce(connection)
        except FrameError as error:
            self._drop("garbage", f"{connection.peer}: {error}")
        finally:
            await connection.close()

    async def _introduce(self, connection: Connection[ToHead]) -> None:
        messages = connection.messages()
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                first = await anext(messages, None)
        except TimeoutError:
            self._drop("silent", connection.peer)
            return
        match first:
            case Register():
                await self._serve_worker(connection, first, messages)
            case StandBy():
                self.standbys += 1
                try:
                    await self._serve_client(connection, first, messages)
                finally:
                    self.standbys -= 1
            case StatusQuery() | StopRun() | ScaleRun() | Note():
                await self._serve_client(connection, first, messages)
            case None:
                pass
            case _:
                self._drop("protocol", f"{connection.peer}: began with {type(first).__name__}")

    async def _serve_worker(
        self, connection: Connection[ToHead], register: Register, messages: AsyncIterator[ToHead]
    ) -> None:
        who = self._workers.admit(connection, register)
        if who is None:
            name = Incarnation(register.worker, register.incarnation)
            self._drop("stale worker", f"{name} (pid {register.pid} on {register.host})")
            connection.send(Fence(f"{name} is not the current incarnation"))
            return
        reason = "its connection was closed"
        self._admitted.add(connection)
        try:
            async for message in messages:
                if not self._dispatch(who, message):
                    reason = f"it sent {type(message).__name__} where it must not"
                    self._drop("protocol", f"{who}: {reason}")
                    return
        except FrameError as error:
            reason = f"it sent garbage: {error}"
            raise
        except asyncio.CancelledError:
            reason = "the head is closing"
            raise
        finally:
            self._admitted.discard(connection)
            self._workers.lost(who, reason)

    def _dispatch(self, who: Incarnation, message: ToHead) -> bool:
        """Hand a worker's message on. False: a worker must not send this, or not in this name."""
        if isinstance(message, FromClient | Register):
            return False
        if (message.worker, message.incarnation) != who:
            return False
        self._workers.hear(who)
        match message:
            case Tokens():
                self._sequences.on_tokens(message)
            case Refused():
                self._sequences.on_refused(message)
            case Failed():
                self._sequences.on_failed(message)
            case Resumed():
                self._sequences.on_resumed(message)
            case Saved():
                self._saved(message)
            case _:
                self._workers.receive(message)
        return True

    async def _serve_client(
        self,
        connection: Connection[ToHead],
        message: ToHead | None,
        messages: AsyncIterator[ToHead],
    ) -> None:
        while message is not None:
            match message:
                case StatusQuery():
                    connection.send(StatusReply(self._status()))
                case StandBy():
                    connection.send(Done())
                case StopRun(drain_s=drain_s) if math.isfinite(drain_s) and drain_s >= 0:
                    await self._stop(drain_s)
                    connection.send(Done())
                    return
                case StopRun():
                    connection.send(Error(f"drain_s: {message.drain_s}: must be 0 or more"))
                case ScaleRun():
                    problem = self._workers.scale(message.role, message.count)
                    connection.send(Done() if problem is None else Error(problem))
                case Note():
                    self._note(message)
                    connection.send(Done())
                case _:
                    self._drop("protocol", f"{connection.peer}: {type(message).__name__}")
                    return
            message = await anext(messages, None)
