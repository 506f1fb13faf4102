"""An AW's process: the engine in the main thread, the control link in a thread of its own.

Register → Welcome → build the engine → Ready → (Table → TableApplied) → serve
Drain, SIGTERM: finish what runs, then Stopping, exit 0.    Shutdown: Stopping, exit 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.attention.loop import ServingLoop
from tarragon_hpc.attention.mailbox import Interrupted, Mailbox
from tarragon_hpc.attention.preload import preload
from tarragon_hpc.attention.tracer import Tracer
from tarragon_hpc.checkpoint.courier import Courier
from tarragon_hpc.datapath.health import Patience
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.models.describe import describe
from tarragon_hpc.transport.auto import make_connector
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.turns import spin_us, take_turns
from tarragon_hpc.wire.link import WorkerLink
from tarragon_hpc.wire.notice import Terminator
from tarragon_hpc.wire.to_head import Linked, Ready, Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tarragon_hpc.attention.engine import Engine
    from tarragon_hpc.models.spec import ModelSpec
    from tarragon_hpc.transport.base import Connector
    from tarragon_hpc.wire.link import WorkerContext

log = logging.getLogger(__name__)


class _Gauges:
    """The newest numbers for heartbeats. Any thread."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        return self.latest

    def publish(self, numbers: dict[str, float]) -> None:
        self.latest = numbers


def main(context: WorkerContext) -> int:
    """Run one AW to its end; returns the exit status. Called in the process's main thread.

    Raises ConfigError, ModelError or ClusterError if it cannot be built.
    """
    who = Incarnation(context.worker, context.incarnation)
    mailbox, gauges, tracer = Mailbox(), _Gauges(), Tracer(who)
    link = WorkerLink(context, {}, mailbox.put, gauges.read)
    with contextlib.ExitStack() as closing:
        closing.callback(link.close)
        try:
            started = time.monotonic()
            Terminator(context, link.send, mailbox.leave, lambda: mailbox.told).install()
            link.start()
            spec = describe(context.config.model.path, context.config.model.dtype)
            preload()
            mailbox.wait_for_welcome()
            refe = closing.enter_context(_forwarding(context, spec, mailbox, link))
            engine = _build(context, spec, refe, tracer, link)
            mailbox.starting = False
        except Interrupted:
            mailbox.starting = False
            reason = "told to leave during the start"
        else:
            seconds = time.monotonic() - started
            log.info("%s on %d threads after %.2f s", engine, engine.threads, seconds)
            link.send(Ready(*who, _detail(spec, engine, seconds)))
            loop = ServingLoop(who, engine, refe, mailbox.messages, link.send, gauges.publish)
            refe.report, refe.poll = loop.report, loop.poll
            if context.shares_cpus:
                take_turns()
            reason = loop.run()
            engine.close()
            tracer.write()
        log.info("leaving: %s", reason)
        link.send(Stopping(*who, reason))
    return 0


@contextlib.contextmanager
def _forwarding(
    context: WorkerContext, spec: ModelSpec, mailbox: Mailbox, link: WorkerLink
) -> Iterator[Refe]:
    """The REFE, without any EW yet."""
    config = context.config
    detection = config.detection
    bell = ProcessDoorbell(spin_us(config.transport.spin_us, shares_cpus=context.shares_cpus))
    refe = Refe(
        worker=context.worker,
        incarnation=context.incarnation,
        connector=_connector(context, bell, link),
        bell=bell,
        experts=spec.experts,
        top_k=spec.top_k,
        hidden=spec.shape.hidden,
        dtype=spec.dtype,
        slots=config.transport.slots,
        slot_rows=config.transport.slot_rows,
        patience=Patience(
            detection.hedge_factor,
            detection.hedge_floor_ms / 1000,
            detection.hedge_ceiling_ms / 1000,
        ),
        probe_s=detection.probe_ms / 1000,
        probe_misses=detection.probe_misses,
        reply_timeout_s=detection.reply_timeout_ms / 1000,
        mask=config.experts.on_missing == "mask",
        missing_timeout_s=config.experts.missing_timeout_s,
    )
    mailbox.ring = bell.ring
    try:
        yield refe
    finally:
        mailbox.ring = lambda: None
        refe.close()
        bell.close()


def _connector(context: WorkerContext, bell: ProcessDoorbell, link: WorkerLink) -> Connector:
    """The way out; the head is told which one it is to each peer."""
    who = Incarnation(context.worker, context.incarnation)
    return make_connector(
        context.config.transport,
        worker=context.worker,
        incarnation=context.incarnation,
        secret=context.secret,
        bell=bell,
        linked=lambda *found: link.send(Linked(*who, *found)),
    )


def _build(
    context: WorkerContext, spec: ModelSpec, refe: Refe, tracer: Tracer, link: WorkerLink
) -> Engine:
    """The engine; imports vLLM, which `preload` has prepared.

    Its rendezvous file goes where the head cleans up: vLLM leaves it behind when it is killed.
    """
    from tarragon_hpc.attention.engine import Engine

    def connect(row_bytes: Sequence[int], allocate: Callable[[int], Any]) -> Courier:
        bell = ProcessDoorbell(0)  # nobody waits for the courier: no need to spin
        connector = _connector(context, bell, link)
        config = context.config.checkpoint
        courier = Courier(connector, bell, row_bytes, config, allocate=allocate)
        tracer.stores(courier)
        courier.start()
        return courier

    elsewhere, tempfile.tempdir = tempfile.tempdir, str(context.runtime_dir)
    try:
        stores = context.config.checkpoint.stores > 0
        experts = tracer.experts(refe)
        return Engine(context.config, spec, experts, context.cpus, connect if stores else None)
    finally:
        tempfile.tempdir = elsewhere


def _detail(
    spec: ModelSpec, engine: Engine, seconds: float
) -> dict[str, str | int | float | list[int]]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "model": spec.path,
        "dtype": spec.dtype,
        "kv_blocks": engine.kv_blocks,
        "load_s": round(seconds, 3),
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
    }
