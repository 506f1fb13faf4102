"""Build the head's parts from a configuration. All that can be wrong is found here.

Nothing is started until everything has been checked; what is opened is closed by the caller's
exit stack, in reverse order.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import socket
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.certificate import issue
from tarragon_hpc.cluster.control import ControlServer
from tarragon_hpc.cluster.launching import chores, control_address, make_launcher, make_places
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import (
    TIMELINE,
    create_run,
    create_runtime_dir,
    open_run,
    run_secret,
    write_head,
)
from tarragon_hpc.cluster.reporter import Reporter
from tarragon_hpc.cluster.roster import explain
from tarragon_hpc.cluster.saving import Saving
from tarragon_hpc.cluster.slurm.chain import own_job
from tarragon_hpc.cluster.succession import (
    adopt,
    cancel,
    claimed,
    inherited,
    listen_again,
    make_room,
    part_from,
)
from tarragon_hpc.cluster.tenure import Guarded, Tenure
from tarragon_hpc.gateway.app import create_app
from tarragon_hpc.gateway.request_log import RequestLog
from tarragon_hpc.gateway.restore import first_attempt
from tarragon_hpc.gateway.server import HttpServer, listen
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.gateway.tls import server_context
from tarragon_hpc.models.describe import describe as describe_model
from tarragon_hpc.observe.metrics import HeadMetrics
from tarragon_hpc.observe.timeline import Timeline
from tarragon_hpc.orchestrator.detector import silence_bound_s
from tarragon_hpc.orchestrator.events import RunCreated
from tarragon_hpc.orchestrator.journal import Journal, journal_name
from tarragon_hpc.orchestrator.placement import Placement, place
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules, rules_for
from tarragon_hpc.orchestrator.service import Orchestrator
from tarragon_hpc.orchestrator.status import describe
from tarragon_hpc.transport.auto import check
from tarragon_hpc.wire.seeking import ALIVE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from contextlib import AsyncExitStack
    from pathlib import Path

    from tarragon_hpc.cluster.ending import Ending
    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import Config
    from tarragon_hpc.gateway.keeper import Keeper
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
    timeline: Timeline
    suspend: Callable[[str], None]
    """Leave the requests that are kept to the next head, for this reason."""
    save: Callable[[float], Awaitable[None]]
    """Leave their KV to its stores, in so many seconds."""


async def assemble(
    config: Config,
    run: Fresh | Path,
    ending: Ending,
    stack: AsyncExitStack,
    more: Callable[[], Mapping[str, Any]] = dict,
    *,
    head_number: int | None = None,
) -> Parts:
    """Check, build and open everything but the workers. `more`: what else the status says.

    head_number: if the run has been claimed already. In this order: the claim, by which a head that
    may be left knows that it is none any more; the journal; the control port; the record, by which
    workers and clients find it. Raises ConfigError or ModelError, before there is a run directory
    unless that is the mistake.
    """
    model = describe_model(config.model.path, config.model.dtype)
    placement = place(model.experts, config.experts, model.expert_bytes)
    replicas = config.checkpoint.replicas if config.checkpoint.stores else 0
    rules = rules_for(model.experts, config.experts, model.expert_bytes, replicas)
    places = make_places(config)
    specs = list(places.values())
    # These are bound below: what they are made of refers to them.
    orchestrator: Orchestrator
    info: RunInfo
    head: HeadRecord
    control: ControlServer

    def status() -> dict[str, Any]:
        known = full_status(info, orchestrator, sessions)
        return {**known, "standbys": control.standbys, **more()}

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
    control_host = control_address(config)
    check(config.transport)
    tls = server_context(config.gateway)
    if isinstance(run, Fresh):
        door = listen(config.gateway.host, config.gateway.port)
        path = create_run(config, run.run_dir)
        number, past = claimed(path), None
    else:
        path = open_run(run)
        number = head_number or claimed(path)
        past = inherited(path, number, config.cluster.backend)
        door = await listen_again(config.gateway, again=past is not None)
    stack.callback(door.close)
    tenure = Tenure(path, number)
    runtime_dir = ""
    if config.cluster.backend == "local":
        runtime_dir = str(create_runtime_dir())
        stack.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
    else:
        stack.push_async_callback(cancel, asyncio.create_task(tenure.watch(), name="tenure"))
    journal = Journal(path / journal_name(number))
    stack.callback(journal.close)
    if past is not None:
        journal.append([past.changed])
        make_room(places, past.state)
    timeline = Timeline(path / TIMELINE)
    stack.callback(timeline.close)
    launcher = await make_launcher(config, path, places, lambda: orchestrator, timeline.record)
    stack.push_async_exit(functools.partial(part_from, launcher))
    reporter = Reporter(sessions, timeline, metrics, lambda: orchestrator.heard)
    detection = config.detection
    orchestrator = Orchestrator(
        _created(path.name, specs, placement, rules, number) if past is None else past.state,
        journal=journal,
        launcher=launcher if config.cluster.backend == "local" else Guarded(launcher, tenure),
        policy=_policy(config, model.expert_bytes, own_job(path)),
        silence_bound_s=silence_bound_s(detection.heartbeat_ms, detection.heartbeat_misses),
        observe=reporter.observe,
        hand_over=ending.hand_over,
        prepare=places.prepare,
        explain=lambda absent: explain(path, head, absent),
    )
    metrics.expose_stats(lambda: _statistics(orchestrator))
    if past is not None:
        adopt(launcher, past)

    http = HttpServer(app, door, tls=tls)
    endpoint = gateway_url(config.gateway.host, http.port, secure=tls is not None)
    info = RunInfo(path.name, path, endpoint)
    saving = Saving(lambda: orchestrator, timeline.record)
    control = ControlServer(
        run_secret(path),
        workers=orchestrator,
        sequences=sessions,
        status=status,
        stop=ending.ask,
        note=note,
        dropped=lambda cause: metrics.dropped_connections.labels(cause).inc(),
        saved=saving.on_saved,
        tls=issue(path) if config.cluster.tls else None,
        alive_s=None if config.cluster.backend == "local" else ALIVE_S,
    )
    port = await control.start(control_host)
    stack.push_async_callback(control.close)
    await stack.enter_async_context(http)
    left = past.places if past is not None else ()
    for chore in chores(config, path, orchestrator, launcher, lambda: control.standbys, left):
        stack.push_async_callback(cancel, asyncio.create_task(chore))
    head = write_head(
        path,
        HeadRecord(
            run=info.run,
            pid=os.getpid(),
            host=socket.gethostname(),
            control_host=control_host,
            control_port=port,
            endpoint=info.endpoint,
            runtime_dir=runtime_dir,
            incarnation=number,
        ),
    )
    if past is None:
        timeline.record("run created", run=info.run)
    else:
        timeline.record("head changed", head=number, host=head.host)
    # Nothing can have been admitted before.
    keeper: Keeper = app.state.keeper
    if taken_over := keeper.take_over(path, number):
        timeline.record("requests taken over", count=taken_over)

    async def save(seconds: float) -> None:
        if config.checkpoint.save_at_handover:
            await saving.save(keeper.unfinished(), first_attempt(number + 1) - 1, seconds)

    return Parts(info, sessions, orchestrator, reporter, timeline, keeper.suspend, save)


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


def _policy(config: Config, expert_bytes: int, job: str) -> Policy:
    return Policy(
        start_timeout_s=config.cluster.start_timeout_s,
        stopped_grace_s=config.detection.stopped_grace_s,
        head_lease_s=config.cluster.head_lease_s,
        max_restarts=config.cluster.max_restarts,
        restart_window_s=config.cluster.restart_window_s,
        leaves_nodes=config.cluster.backend == "slurm",
        hopeless_s=config.cluster.slurm.hopeless_s if config.cluster.backend == "slurm" else None,
        job=job,
        load_batch=max(1, min(64, _LOAD_BYTES // expert_bytes)),
    )


def _created(
    run: str, specs: list[WorkerSpec], placement: Placement, rules: Rules, head: int
) -> RunCreated:
    return RunCreated(
        time.monotonic(),
        run,
        [spec.worker for spec in specs],
        placement.experts,
        {worker: list(held) for worker, held in placement.primaries.items()},
        {worker: list(held) for worker, held in placement.shadows.items()},
        rules,
        head,
    )


def _statistics(orchestrator: Orchestrator) -> Iterator[tuple[str, str, float]]:
    for who, stats in orchestrator.stats.items():
        worker = orchestrator.state.workers.get(who.worker)
        if worker is not None and worker.incarnation == who.number:
            for name, value in stats.items():
                yield who.worker, name, value
