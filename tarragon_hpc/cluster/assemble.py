"""Build the head's parts from a configuration. All that can be wrong is found here.

Nothing is started until everything has been checked; what is opened is closed by the caller's
exit stack, in reverse order.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.certificate import issue
from tarragon_hpc.cluster.control import ControlServer
from tarragon_hpc.cluster.devices import usable_cpus, usable_gpus
from tarragon_hpc.cluster.forking import ForkServers
from tarragon_hpc.cluster.local import LocalLauncher, check_prefixes
from tarragon_hpc.cluster.places import Places
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import (
    JOURNAL,
    TIMELINE,
    create_run,
    create_runtime_dir,
    open_run,
    run_secret,
    write_head,
)
from tarragon_hpc.cluster.reporter import Reporter
from tarragon_hpc.cluster.roster import explain
from tarragon_hpc.cluster.spec import WorkerSpec, plan_workers
from tarragon_hpc.gateway.app import create_app
from tarragon_hpc.gateway.request_log import RequestLog
from tarragon_hpc.gateway.server import HttpServer, listen
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.gateway.tls import server_context
from tarragon_hpc.models.describe import describe as describe_model
from tarragon_hpc.observe.metrics import HeadMetrics
from tarragon_hpc.observe.timeline import Timeline
from tarragon_hpc.orchestrator.detector import silence_bound_s
from tarragon_hpc.orchestrator.events import RunCreated
from tarragon_hpc.orchestrator.journal import Journal
from tarragon_hpc.orchestrator.placement import Placement, place
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules, rules_for
from tarragon_hpc.orchestrator.service import Orchestrator
from tarragon_hpc.orchestrator.status import describe
from tarragon_hpc.transport.auto import check
from tarragon_hpc.transport.interfaces import LOOPBACK, data_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AsyncExitStack
    from pathlib import Path

    from tarragon_hpc.config import Config
    from tarragon_hpc.wire.to_head import Note

# About so much is loaded before an EW says what it holds by then.
_LOAD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Fresh:
    """A run whose directory is to be made: here, or (None) under run.root."""

    run_dir: Path | None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run. `endpoint` is its base URL for OpenAI clients."""

    run: str
    run_dir: Path
    endpoint: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What a head is made of; the gateway and the control port are listening."""

    info: RunInfo
    sessions: Sessions
    orchestrator: Orchestrator
    reporter: Reporter


async def assemble(
    config: Config,
    run: Fresh | Path,
    stop: Callable[[float], Awaitable[None]],
    stack: AsyncExitStack,
) -> Parts:
    """Check, build and open everything but the workers; `stop` is what a client's StopRun does.

    Raises ConfigError or ModelError, before there is a run directory unless that is the mistake.
    """
    model = describe_model(config.model.path, config.model.dtype)
    placement = place(model.experts, config.experts, model.expert_bytes)
    replicas = config.checkpoint.replicas if config.checkpoint.stores else 0
    rules = rules_for(model.experts, config.experts, model.expert_bytes, replicas)
    check_prefixes(config.cluster.prefix)
    gpus = usable_gpus()
    specs = plan_workers(config, usable_cpus(), gpus)
    places = Places(config, specs, gpus)
    # These are bound below: what they are made of refers to them.
    orchestrator: Orchestrator
    info: RunInfo
    head: HeadRecord

    def status() -> dict[str, Any]:
        return full_status(info, orchestrator, sessions)

    def note(message: Note) -> None:
        detail: dict[str, Any] = dict(message.detail)
        timeline.record(message.event, worker=message.worker, **detail)

    def tell(event: str, worker: str, incarnation: int, **detail: Any) -> None:
        timeline.record(event, worker=worker, incarnation=incarnation, **detail)

    metrics = HeadMetrics()
    notes = RequestLog()
    stack.callback(notes.close)
    sessions = Sessions(
        lambda worker, message: orchestrator.send(worker, message),
        config.gateway.max_requests,
        failover_timeout_s=config.gateway.failover_timeout_s,
        tell=tell,
        notebook=notes,
    )
    app = create_app(
        sessions=sessions,
        spec=model,
        config=config,
        status=status,
        registry=metrics.registry,
        notes=notes,
    )
    # Unless told otherwise all workers and clients are on this machine.
    control_host = data_address(config.transport.interface, LOOPBACK)
    check(config.transport)
    tls = server_context(config.gateway)
    door = listen(config.gateway.host, config.gateway.port)
    stack.callback(door.close)

    path = create_run(config, run.run_dir) if isinstance(run, Fresh) else open_run(run)
    runtime_dir = create_runtime_dir()
    stack.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
    journal = Journal(path / JOURNAL)
    stack.callback(journal.close)
    timeline = Timeline(path / TIMELINE)
    stack.callback(timeline.close)
    launcher = LocalLauncher(
        places,
        path,
        lambda who: orchestrator.ending(who),
        lambda who, returncode: orchestrator.exited(who, returncode),
        ForkServers(path) if config.cluster.fork_server else None,
    )
    stack.push_async_callback(launcher.close)
    reporter = Reporter(sessions, timeline, metrics, lambda: orchestrator.heard)
    detection = config.detection
    orchestrator = Orchestrator(
        _created(path.name, specs, placement, rules),
        journal=journal,
        launcher=launcher,
        policy=_policy(config, model.expert_bytes),
        silence_bound_s=silence_bound_s(detection.heartbeat_ms, detection.heartbeat_misses),
        observe=reporter.observe,
        prepare=places.prepare,
        explain=lambda absent: explain(path, head, absent),
    )
    metrics.expose_stats(lambda: _statistics(orchestrator))

    http = HttpServer(app, door, tls=tls)
    endpoint = gateway_url(config.gateway.host, http.port, secure=tls is not None)
    info = RunInfo(path.name, path, endpoint)
    control = ControlServer(
        run_secret(path),
        workers=orchestrator,
        sequences=sessions,
        status=status,
        stop=stop,
        note=note,
        dropped=lambda cause: metrics.dropped_connections.labels(cause).inc(),
        tls=issue(path) if config.cluster.tls else None,
    )
    port = await control.start(control_host)
    stack.push_async_callback(control.close)
    await stack.enter_async_context(http)
    head = write_head(
        path,
        HeadRecord(
            run=info.run,
            pid=os.getpid(),
            host=socket.gethostname(),
            control_host=control_host,
            control_port=port,
            endpoint=info.endpoint,
            runtime_dir=str(runtime_dir),
        ),
    )
    timeline.record("run created", run=info.run)
    # Nothing can have been admitted before.
    taken_over = app.state.keeper.take_over(path, head.incarnation)
    if taken_over:
        timeline.record("requests taken over", count=taken_over)
    return Parts(info, sessions, orchestrator, reporter)


def full_status(info: RunInfo, orchestrator: Orchestrator, sessions: Sessions) -> dict[str, Any]:
    """What `tarragon status` and GET /status show: the run, its workers and its requests."""
    now = time.monotonic()
    status = describe(
        orchestrator.state,
        endpoint=info.endpoint,
        now=now,
        heard=orchestrator.heard,
        stats=orchestrator.stats,
    )
    status["run_dir"] = str(info.run_dir)
    status["requests"] = asdict(sessions.stats())
    return status


def gateway_url(host: str, port: int, *, secure: bool = False) -> str:
    """The address to give to clients; a wildcard listens on every name of this host."""
    name = _own_name() if host in ("0.0.0.0", "::", "") else host
    scheme = "https" if secure else "http"
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}/v1"


def _own_name() -> str:
    """This host's name, if it can be looked up here (in a container it often cannot)."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return "127.0.0.1"
    return name


def _policy(config: Config, expert_bytes: int) -> Policy:
    return Policy(
        start_timeout_s=config.cluster.start_timeout_s,
        stopped_grace_s=config.detection.stopped_grace_s,
        max_restarts=config.cluster.max_restarts,
        restart_window_s=config.cluster.restart_window_s,
        load_batch=max(1, min(64, _LOAD_BYTES // expert_bytes)),
    )


def _created(run: str, specs: list[WorkerSpec], placement: Placement, rules: Rules) -> RunCreated:
    return RunCreated(
        time.monotonic(),
        run,
        [spec.worker for spec in specs],
        placement.experts,
        {worker: list(held) for worker, held in placement.primaries.items()},
        {worker: list(held) for worker, held in placement.shadows.items()},
        rules,
    )


def _statistics(orchestrator: Orchestrator) -> Iterator[tuple[str, str, float]]:
    for who, stats in orchestrator.stats.items():
        worker = orchestrator.state.workers.get(who.worker)
        if worker is not None and worker.incarnation == who.number:
            for name, value in stats.items():
                yield who.worker, name, value
