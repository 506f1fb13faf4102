"""The CS process: join the run, set memory aside, keep KV until told to stop.

The main thread runs the store; the control link lives in a thread beside it and never waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.checkpoint.archive import Archive
from tarragon_hpc.checkpoint.server import StoreServer
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.transport.auto import make_listener
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.interfaces import data_address
from tarragon_hpc.transport.turns import take_turns
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
from tarragon_hpc.wire.notice import Terminator
from tarragon_hpc.wire.to_head import Ready, Stopping
from tarragon_hpc.wire.to_worker import Drain, Save, Shutdown, ToWorker, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc._native import KvStore
    from tarragon_hpc.config.schema import CheckpointConfig

log = logging.getLogger(__name__)


class _Orders:
    """What the head and signals want, handed from the control thread to the main thread."""

    def __init__(self) -> None:
        self._welcome: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stop: str | None = None
        self._server: StoreServer | None = None
        self._save: Callable[[Save], None] | None = None

    @property
    def stopped(self) -> str | None:
        """Why the worker is to leave, or None."""
        return self._stop

    def on_message(self, message: ToWorker) -> None:
        """In the control thread."""
        match message:
            case Welcome():
                self._welcome.put(None)
            case Save() if self._save is not None:
                threading.Thread(target=self._save, args=[message], daemon=True).start()
            case Drain() | Shutdown():
                self.stop(message.reason)
            case _:
                log.warning("a message that is not for a CS: %s", type(message).__name__)

    def leave(self) -> None:
        """SIGTERM; in the main thread, wherever it is."""
        self.stop("SIGTERM")

    def stop(self, reason: str) -> None:
        """From any thread; also before there is a server. AWs do without it: no need to drain."""
        self._stop = self._stop or reason
        if self._server is not None:
            self._server.stop(reason)
        self._welcome.put(None)

    def wait_for_welcome(self) -> None:
        """Until the worker belongs to the run, or is to stop."""
        self._welcome.get()

    def direct(self, server: StoreServer, save: Callable[[Save], None]) -> None:
        """From now on orders go to this server; what came before counts too. `save` is called in a
        thread of its own: meanwhile the server serves, and whoever is in a hurry need not wait.
        """
        self._server, self._save = server, save
        if self._stop is not None:
            server.stop(self._stop)

    def stats(self) -> dict[str, float]:
        """For heartbeats."""
        return {} if self._server is None else self._server.stats()


def main(context: WorkerContext) -> int:
    """Run a CS to its end; returns its exit status. Raises UserError or ClusterError."""
    bell = ProcessDoorbell(spin_us=0)  # nobody waits for it but its own clients' next frames
    listener = make_listener(
        context.config.transport,
        runtime_dir=str(context.runtime_dir),
        host=data_address(context.config.transport.interface, context.head[0]),
        worker=context.worker,
        incarnation=context.incarnation,
        secret=context.secret,
        bell=bell,
    )
    orders = _Orders()
    link = WorkerLink(context, listener.address(), orders.on_message, orders.stats)
    Terminator(context, link.send, orders.leave, lambda: orders.stopped is not None).install()
    link.start()
    try:
        orders.wait_for_welcome()
        reason = orders.stopped
        if reason is None:
            config = context.config.checkpoint
            store, archive = _make_store(config), Archive(context)
            if not archive.read(store):
                store = _make_store(config)
            server = StoreServer(store, listener, bell)
            orders.direct(server, lambda order: link.send(archive.write(store, order)))
            log.info("keeping up to %d MiB of KV", config.memory >> 20)
            link.send(Ready(context.worker, context.incarnation, {"memory": config.memory}))
            if context.shares_cpus:
                take_turns()
            reason = server.serve()
        log.info("stopping: %s", reason)
        link.send(Stopping(context.worker, context.incarnation, reason))
    finally:
        listener.close()
        link.close()
    return 0


def _make_store(config: CheckpointConfig) -> KvStore:
    try:
        return native.module.KvStore(config.memory, check=config.checksums)
    except MemoryError:
        raise ClusterError(
            f"checkpoint.memory: {config.memory} bytes cannot be had on this machine; "
            "set less, or start fewer stores"
        ) from None
