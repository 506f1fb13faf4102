"""Experts that come and go while an EW serves (paper §5.3): read beside the expert loop.

One thread, which does what the head asks for in order. Batches go on meanwhile: reading and
faulting in pages release the GIL, and the change itself takes microseconds between two batches.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.errors import TarragonError
from tarragon_hpc.expert.weights import ExpertReader, footprint, read_ahead
from tarragon_hpc.wire.to_head import Holding
from tarragon_hpc.wire.to_worker import Load, Unload

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.expert.server import ExpertServer

    Order: TypeAlias = Load | Unload

log = logging.getLogger(__name__)


class Loader:
    """Answers every `Load` and `Unload` with a `Holding`, in the order in which they came.

    `put` may be called from any thread, also before `start`. A load that fails leaves everything
    as it was; one of experts that are there is answered at once.
    """

    def __init__(self, worker: str, incarnation: int, send: Callable[[Holding], None]) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self._send = send
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def __repr__(self) -> str:
        return f"Loader({self._worker}.{self._incarnation}, {self._orders.qsize()} waiting)"

    def put(self, order: Order) -> None:
        """Have something done when what came before is done. Never waits."""
        self._orders.put(order)

    def start(self, server: ExpertServer, reader: ExpertReader) -> None:
        """Begin, in a thread that ends with the process."""
        threading.Thread(
            target=self._run, args=(server, reader), name="loader", daemon=True
        ).start()

    def _run(self, server: ExpertServer, reader: ExpertReader) -> None:
        while True:
            self._send(self._answer(self._orders.get(), server, reader))

    def _answer(self, order: Order, server: ExpertServer, reader: ExpertReader) -> Holding:
        error = None
        try:
            if isinstance(order, Load):
                _load(order.experts, server, reader)
            else:
                server.drop(order.experts).result()
                log.info("dropped experts %s", order.experts)
        # ValueError: an expert that the model does not have; RuntimeError: the device is full.
        except (TarragonError, OSError, MemoryError, RuntimeError, ValueError) as problem:
            error = str(problem) or type(problem).__name__
            log.error("%s: %s", order, error)
        return Holding(self._worker, self._incarnation, sorted(server.experts), error)


def _load(experts: list[int], server: ExpertServer, reader: ExpertReader) -> None:
    missing = sorted(set(experts) - server.experts)
    if not missing:
        return
    start = time.monotonic()
    tensors = reader.load(missing)
    read_ahead(tensors)
    size = footprint(tensors)
    server.install(tensors).result()
    log.info(
        "serving experts %s too (%d MiB mapped, %d MiB copied) after %.2f s",
        missing,
        size.mapped >> 20,
        size.copied >> 20,
        time.monotonic() - start,
    )
