"""A worker's end of its control connection, in a thread of its own.

The worker's main thread steps an engine or an expert loop and must never wait for the head
(DESIGN invariant 3), so everything that talks to the head lives in the thread named "control".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.errors import TarragonError
from tarragon_hpc.wire.codec import worker_decoder
from tarragon_hpc.wire.stream import Connection, connect
from tarragon_hpc.wire.to_head import Heartbeat, Register
from tarragon_hpc.wire.to_worker import Fence, ToWorker

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tarragon_hpc.config import Config, DetectionConfig
    from tarragon_hpc.wire.common import Message

# Exit statuses of a worker that ends itself here (after sysexits.h). The head names them.
EXIT_BUG = 70
EXIT_HEAD_LOST = 75
EXIT_FENCED = 76

_FLUSH_TIMEOUT_S = 2.0
# With this much unsent the head is stopped or cut off: more heartbeats would tell it nothing.
_QUIET_ABOVE_BYTES = 64 << 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker process knows when its role's `main(context)` is called.

    `runtime_dir` is on this node, private to the user and short enough for Unix sockets; it is
    removed at the end of the run. `cpus` has been applied to the process already; None: unbound.
    `shares_cpus`: AWs and EWs compute on the same ones. `publish` leaves word in the run directory
    before the head is called, with the address that it will be given. `tls`: of the control
    connection. `host`: the name of this node, by Slurm if the run is there.
    """

    worker: str
    incarnation: int
    config: Config
    run_dir: Path
    secret: bytes = field(repr=False)
    head: tuple[str, int]
    runtime_dir: Path
    cpus: tuple[int, ...] | None
    shares_cpus: bool = False
    publish: Callable[[Mapping[str, str]], None] = lambda address: None
    tls: ssl.SSLContext | None = None
    host: str = field(default_factory=socket.gethostname)


def lease_s(detection: DetectionConfig) -> float:
    """How long a worker may serve that is cut off from its head: until that gives its place away.

    A head that is stopped is not a reason to leave, as long as its host answers.
    """
    return detection.heartbeat_ms * detection.heartbeat_misses / 1000 + detection.stopped_grace_s


class WorkerLink:
    """Registers this worker with the head, keeps telling it that it lives, carries messages.

    `on_message` and `stats` are called in the control thread and must not block. `Fence` never
    reaches `on_message`: the process ends at once (EXIT_FENCED). Losing the head ends the process
    too (EXIT_HEAD_LOST), also if its host is silent for `lease_s`, and so does an exception in the
    control thread (EXIT_BUG): a worker that nobody can reach must not go on serving.
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
        self._outbox: deque[Message] = deque()
        self._connection: Connection[ToWorker] | None = None
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
        read submits nothing new either. After `close` messages are dropped.
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
        if self._connection is not None:
            while self._outbox:
                self._connection.send(self._outbox.popleft())

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
        context = self._context
        context.publish(self._address)
        try:
            self._connection = await connect(
                *context.head, context.secret, worker_decoder(), context=context.tls
            )
        except TarragonError as error:
            log.error("cannot join the run: %s", error)
            os._exit(EXIT_HEAD_LOST)
        self._connection.send(
            Register(
                context.worker,
                context.incarnation,
                os.getpid(),
                context.host,
                self._address,
            )
        )
        self._flush()
        jobs = [
            asyncio.create_task(self._receive(self._connection), name="receive"),
            asyncio.create_task(self._beat(self._connection), name="heartbeat"),
            asyncio.create_task(self._closing.wait(), name="closing"),
        ]
        done, pending = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        for job in pending:
            job.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for job in done:
            job.result()
        self._flush()
        connection, self._connection = self._connection, None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await connection.close()

    async def _receive(self, connection: Connection[ToWorker]) -> None:
        try:
            async for message in connection.messages():
                if isinstance(message, Fence):
                    os._exit(EXIT_FENCED)
                self._on_message(message)
            reason = "connection closed"
        except TarragonError as error:
            reason = str(error)
        if not self._closing.is_set():
            log.error("lost the head: %s; exiting", reason)
            os._exit(EXIT_HEAD_LOST)

    async def _beat(self, connection: Connection[ToWorker]) -> None:
        context = self._context
        lease = lease_s(context.config.detection)
        while True:
            await asyncio.sleep(context.config.detection.heartbeat_ms / 1000)
            if connection.unheard_s() > lease:
                log.error("the head's host has been silent for %.1f s; exiting", lease)
                os._exit(EXIT_HEAD_LOST)
            if connection.backlog < _QUIET_ABOVE_BYTES:
                connection.send(Heartbeat(context.worker, context.incarnation, self._stats()))
