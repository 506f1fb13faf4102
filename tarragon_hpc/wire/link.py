"""A worker's end of its control connection, in a thread of its own.

The worker's main thread steps an engine or an expert loop and must never wait for the head
(DESIGN invariant 3), so everything that talks to the head lives in the thread named "control".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.errors import TarragonError
from tarragon_hpc.wire.codec import worker_decoder
from tarragon_hpc.wire.context import WorkerContext, lease_s
from tarragon_hpc.wire.seeking import QUIET_S, HeadPlace, Seek, look
from tarragon_hpc.wire.standing import Memory
from tarragon_hpc.wire.stream import Connection, connect
from tarragon_hpc.wire.to_head import Heartbeat, Register
from tarragon_hpc.wire.to_worker import Abort, Alive, Fence, ToWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.wire.common import Message

__all__ = [
    "EXIT_BUG",
    "EXIT_FENCED",
    "EXIT_HEAD_LOST",
    "FromHead",
    "WorkerContext",
    "WorkerLink",
    "lease_s",
]

# Exit statuses of a worker that ends itself here (after sysexits.h). The head names them.
EXIT_BUG = 70
EXIT_HEAD_LOST = 75
EXIT_FENCED = 76

_CONNECT_S = 10.0
_FLUSH_TIMEOUT_S = 2.0
# With this much unsent the head is stopped or cut off: more heartbeats would tell it nothing.
_QUIET_ABOVE_BYTES = 64 << 10

FromHead: TypeAlias = ToWorker | Alive

log = logging.getLogger(__name__)


class WorkerLink:
    """Registers this worker with the head, keeps telling it that it lives, carries messages.

    `on_message` and `stats` are called in the control thread and must not block. `Fence` never
    reaches `on_message`: the process ends at once (EXIT_FENCED). An exception in the control thread
    ends it too (EXIT_BUG): a worker that nobody can reach must not go on serving.

    Losing the head, also if its host is silent for `lease_s`, ends the process (EXIT_HEAD_LOST),
    unless the context says how to look for the next one: then the worker forgets the sequences of
    the old one (an `Abort`, moved), serves on, and tells the next one what it is. It leaves if none
    comes within `cluster.head_lease_s`.
    """

    def __init__(
        self,
        context: WorkerContext,
        address: dict[str, str],
        on_message: Callable[[ToWorker], None],
        stats: Callable[[], dict[str, float]],
    ) -> None:
        self._context = context
        self._address = address
        self._on_message = on_message
        self._stats = stats
        self._head = HeadPlace(context.head_number, *context.head, context.tls)
        self._memory = Memory()
        self._known = False  # to any head
        self._orphan = False
        self._heard = 0.0
        self._outbox: deque[Message] = deque()
        self._connection: Connection[FromHead] | None = None
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def __repr__(self) -> str:
        state = "connected" if self._connection else "closed" if self._loop.is_closed() else "new"
        return f"WorkerLink({self._context.worker}.{self._context.incarnation}, {state})"

    def start(self) -> None:
        """Connect and register in the background; returns at once."""
        self._thread.start()

    def send(self, *messages: Message) -> None:
        """Queue messages in order. From any thread, never waits; also before `start`.

        The queue holds at most what the running sequences still produce: a head that does not
        read submits nothing new either. Without a head only what the next one must know is kept.
        After `close` messages are dropped.
        """
        self._outbox.extend(messages)
        # RuntimeError: the loop has been closed, and with it the link.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._flush)

    def close(self) -> None:
        """Send what is queued, then disconnect. Safe to call twice, and from `on_message`."""
        if self._thread.ident is None:
            self._loop.close()
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._closing.set)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _flush(self) -> None:
        if self._connection is None and not self._orphan:
            return
        while self._outbox:
            message = self._outbox.popleft()
            self._memory.said(message)
            if self._connection is not None:
                self._connection.send(message)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            log.exception("control thread failed")
            os._exit(EXIT_BUG)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._context.publish(self._address)
        connection: Connection[FromHead] | None
        try:
            connection = await self._connect(self._head)
        except TarragonError as error:
            connection = await self._without_head(f"cannot join the run: {error}")
        while connection is not None:
            reason = await self._serve_head(connection)
            if reason is None:
                return
            connection = await self._without_head(f"lost the head: {reason}")

    async def _connect(
        self, head: HeadPlace, timeout_s: float = _CONNECT_S
    ) -> Connection[FromHead]:
        return await connect(
            head.host,
            head.port,
            self._context.secret,
            worker_decoder(),
            timeout_s=timeout_s,
            context=head.tls,
        )

    async def _serve_head(self, connection: Connection[FromHead]) -> str | None:
        """Register and talk, until the link is closed (None) or the head is lost (why)."""
        context = self._context
        self._connection, self._orphan, self._heard = connection, False, time.monotonic()
        standing = self._memory.standing() if self._known else None
        connection.send(
            Register(
                context.worker,
                context.incarnation,
                os.getpid(),
                socket.gethostname(),
                self._address,
                context.step,
                context.node,
                standing,
            ),
            *self._memory.reports(),
        )
        self._known = True
        self._flush()
        jobs = [
            asyncio.create_task(self._receive(connection), name="receive"),
            asyncio.create_task(self._beat(connection), name="heartbeat"),
            asyncio.create_task(self._closing.wait(), name="closing"),
        ]
        if context.seek is not None:
            jobs.append(asyncio.create_task(self._look_around(context.seek), name="look-around"))
        done, pending = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        for job in pending:
            job.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        reasons = [job.result() for job in done]
        self._flush()
        self._connection = None
        self._orphan = not self._closing.is_set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S if self._closing.is_set() else 0):
                await connection.close()
        return None if self._closing.is_set() else str(reasons[0])

    async def _receive(self, connection: Connection[FromHead]) -> str:
        try:
            async for message in connection.messages():
                self._heard = time.monotonic()
                if isinstance(message, Fence):
                    os._exit(EXIT_FENCED)
                if not isinstance(message, Alive):
                    self._memory.told(message)
                    self._on_message(message)
        except TarragonError as error:
            return str(error)
        return "connection closed"

    async def _beat(self, connection: Connection[FromHead]) -> str:
        context = self._context
        lease = lease_s(context.config.detection)
        while True:
            await asyncio.sleep(context.config.detection.heartbeat_ms / 1000)
            if connection.unheard_s() > lease:
                return f"the head's host has been silent for {lease:.1f} s"
            if connection.backlog < _QUIET_ABOVE_BYTES:
                connection.send(Heartbeat(context.worker, context.incarnation, self._stats()))

    async def _look_around(self, seek: Seek) -> str:
        """While the head is quiet: whether there is a newer one. Only its host answers for a head
        that is stopped, and it will not know that it was replaced.
        """
        while True:
            quiet = time.monotonic() - self._heard
            if quiet < QUIET_S:
                await asyncio.sleep(QUIET_S - quiet)
                continue
            await asyncio.sleep(_pause_s())
            place = await look(seek, QUIET_S)
            if place is not None and place.number > self._head.number:
                return f"it says nothing, and there is head {place.number}"

    async def _without_head(self, reason: str) -> Connection[FromHead] | None:
        """Find the next head and connect; None: the link was closed. Ends the process if nobody
        comes in time, or nobody can.
        """
        seek = self._context.seek
        if self._closing.is_set():
            return None
        if seek is None:
            log.error("%s; exiting", reason)
            os._exit(EXIT_HEAD_LOST)
        lease = self._context.config.cluster.head_lease_s
        log.warning("%s; looking for the next one for %g s", reason, lease)
        if sequences := self._memory.drop_sequences():
            self._on_message(Abort(sequences, moved=True))
        try:
            async with asyncio.timeout(lease):
                return await self._next_head(seek)
        except TimeoutError:
            log.error("no other head within %g s; exiting", lease)
            os._exit(EXIT_HEAD_LOST)

    async def _next_head(self, seek: Seek) -> Connection[FromHead] | None:
        """A connection to whoever is the newest head: also to the one that was lost, which tells
        this worker that it has given it up.
        """
        while not self._closing.is_set():
            place = await look(seek, QUIET_S)
            if place is not None and place.number >= self._head.number:
                try:
                    connection = await self._connect(place, QUIET_S)
                except TarragonError as error:
                    log.debug("%s: %s", place, error)
                else:
                    self._head = place
                    log.info("registering with head %d", place.number)
                    return connection
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_pause_s()):
                    await self._closing.wait()
        return None


def _pause_s() -> float:
    """Between two looks for another head; random, so that not all workers look at once."""
    return random.uniform(0.2, 1.0)
