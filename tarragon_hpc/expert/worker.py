"""The EW process: join the run, load the experts it is given, serve them until told to stop.

The main thread loads and then runs the expert loop; the control link lives in a thread beside it
and never waits for it. A third thread (`loader.py`) loads what the head asks for later on.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.expert.loader import Loader
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.expert.weights import ExpertReader, footprint, read_ahead
from tarragon_hpc.models.describe import describe
from tarragon_hpc.ops.select import make_bank
from tarragon_hpc.transport.auto import make_listener
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.interfaces import data_address
from tarragon_hpc.transport.turns import spin_us, take_turns
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
from tarragon_hpc.wire.notice import Terminator
from tarragon_hpc.wire.to_head import Ready, Stopping
from tarragon_hpc.wire.to_worker import Drain, Load, Shutdown, ToWorker, Unload, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.models.spec import ModelSpec
    from tarragon_hpc.ops.base import ExpertBank

log = logging.getLogger(__name__)


class _Orders:
    """What the head and signals want, handed from the control thread to the main thread."""

    def __init__(self, change: Callable[[Load | Unload], None]) -> None:
        self._change = change
        self._welcome: queue.SimpleQueue[Welcome | None] = queue.SimpleQueue()
        self._stop: tuple[str, bool] | None = None
        self._server: ExpertServer | None = None

    def on_message(self, message: ToWorker) -> None:
        """In the control thread."""
        match message:
            case Welcome():
                self._welcome.put(message)
            case Load() | Unload():
                self._change(message)
            case Drain():
                self.stop(message.reason, drain=True)
            case Shutdown():
                self.stop(message.reason, drain=False)
            case _:
                log.warning("a message that is not for an EW: %s", type(message).__name__)

    def leave(self) -> None:
        """SIGTERM; in the main thread, wherever it is."""
        self.stop("SIGTERM", drain=True)

    def stop(self, reason: str, *, drain: bool) -> None:
        """From any thread; also before there is a server."""
        self._stop = (reason, drain)
        if self._server is not None:
            self._server.stop(reason, drain=drain)
        self._welcome.put(None)

    def told(self) -> bool:
        """Whether it is to leave already."""
        return self._stop is not None

    def wait_for_welcome(self) -> Welcome | None:
        """The experts to serve; None if the worker is to stop before it was given any."""
        return self._welcome.get()

    def direct(self, server: ExpertServer) -> None:
        """From now on orders go to this server; what came before counts too."""
        self._server = server
        if self._stop is not None:
            reason, drain = self._stop
            server.stop(reason, drain=drain)

    def stats(self) -> dict[str, float]:
        """For heartbeats."""
        return {} if self._server is None else self._server.stats()


def main(context: WorkerContext) -> int:
    """Run an EW to its end; returns its exit status. Raises UserError or ClusterError."""
    config = context.config
    spec = describe(config.model.path, config.model.dtype)
    bell = ProcessDoorbell(spin_us(config.transport.spin_us, shares_cpus=context.shares_cpus))
    listener = make_listener(
        config.transport,
        runtime_dir=str(context.runtime_dir),
        host=data_address(config.transport.interface, context.head[0]),
        worker=context.worker,
        incarnation=context.incarnation,
        secret=context.secret,
        bell=bell,
    )
    loader = Loader(context.worker, context.incarnation, lambda holding: link.send(holding))
    orders = _Orders(loader.put)
    link = WorkerLink(context, listener.address(), orders.on_message, orders.stats)
    Terminator(context, link.send, orders.leave, orders.told).install()
    link.start()
    try:
        welcome = orders.wait_for_welcome()
        reason = "told to stop before it was given experts"
        if welcome is not None:
            reader = ExpertReader(spec)
            bank, ready = _load(context, spec, welcome, reader)
            server = ExpertServer(
                bank,
                listener,
                bell,
                spec,
                context.incarnation,
                config.experts.batching,
                shares_cpus=context.shares_cpus,
            )
            orders.direct(server)
            link.send(ready)
            loader.start(server, reader)
            if context.shares_cpus:
                take_turns()
            reason = server.serve()
        log.info("stopping: %s", reason)
        link.send(Stopping(context.worker, context.incarnation, reason))
    finally:
        listener.close()
        link.close()
    return 0


def _load(
    context: WorkerContext, spec: ModelSpec, welcome: Welcome, reader: ExpertReader
) -> tuple[ExpertBank, Ready]:
    start = time.monotonic()
    experts = sorted({*(welcome.experts or ()), *(welcome.shadows or ())})
    if not experts:
        raise ClusterError(f"{context.worker}: the head gave it no experts to serve")
    tensors = reader.load(experts)
    read_ahead(tensors)
    bank = make_bank(context.config.experts.backend, tensors, spec.shape, _threads(context))
    seconds = time.monotonic() - start
    size = footprint(tensors)
    log.info(
        "serving experts %s (%d MiB mapped, %d MiB copied) after %.2f s",
        experts,
        size.mapped >> 20,
        size.copied >> 20,
        seconds,
    )
    detail: dict[str, str | int | float | list[int]] = {
        "experts": sorted(welcome.experts or ()),
        "shadows": sorted(welcome.shadows or ()),
        "nbytes": bank.nbytes(),
        "mapped": size.mapped,
        "copied": size.copied,
        "backend": type(bank).__name__.removesuffix("Bank").lower(),
        "load_s": round(seconds, 3),
    }
    return bank, Ready(context.worker, context.incarnation, detail)


def _threads(context: WorkerContext) -> int:
    """CPU threads: as configured, or one per CPU that this worker is bound to, or a share."""
    config = context.config
    if config.experts.threads is not None:
        return config.experts.threads
    if context.cpus is not None:
        return len(context.cpus)
    return max(1, len(os.sched_getaffinity(0)) // config.experts.workers)
