"""Where workers run, by `cluster.backend`: their places, and who starts them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.devices import usable_cpus, usable_gpus
from tarragon_hpc.cluster.forking import ForkServers
from tarragon_hpc.cluster.local import LocalLauncher, check_prefixes
from tarragon_hpc.cluster.places import Places
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.cluster.slurm import jobs
from tarragon_hpc.cluster.slurm.absent import look_for
from tarragon_hpc.cluster.slurm.allocation import SQUEUE_FORMAT, of_environment, of_queue
from tarragon_hpc.cluster.slurm.bad_nodes import recalled
from tarragon_hpc.cluster.slurm.chain import own_job
from tarragon_hpc.cluster.slurm.commands import SlurmError, acall
from tarragon_hpc.cluster.slurm.launcher import SlurmLauncher
from tarragon_hpc.cluster.slurm.resources import components
from tarragon_hpc.cluster.slurm.standby_head import StandbyKeeper
from tarragon_hpc.cluster.slurm.step_launcher import StepLauncher
from tarragon_hpc.cluster.slurm.watch import QueueWatch
from tarragon_hpc.cluster.spec import plan_steps, plan_workers
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.observe.timeline import read_timeline
from tarragon_hpc.orchestrator.state import Phase, RunPhase, State
from tarragon_hpc.transport.interfaces import (
    LOOPBACK,
    data_address,
    reachable_address,
    read_interfaces,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.inheritance import Place
    from tarragon_hpc.cluster.slurm.allocation import Allocation
    from tarragon_hpc.cluster.slurm.launcher import Tell
    from tarragon_hpc.config import Config
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.orchestrator.service import Orchestrator

Launcher = LocalLauncher | SlurmLauncher

_ARRIVING = frozenset({Phase.STARTING, Phase.REGISTERED, Phase.LOADING})


def make_places(config: Config) -> Places:
    """The places of a run's workers. Raises ConfigError."""
    if config.cluster.backend == "slurm":
        return Places(config, plan_steps(config), (), shares_cpus=False)
    check_prefixes(config.cluster.prefix)
    gpus = usable_gpus()
    specs = plan_workers(config, usable_cpus(), gpus)
    return Places(config, specs, gpus, shares_cpus=not gpus)


async def make_launcher(
    config: Config,
    run_dir: Path,
    places: Places,
    orchestrator: Callable[[], Orchestrator],
    tell: Tell,
) -> Launcher:
    """Who starts the workers. Nothing is started yet. `tell`: lines for the timeline. Raises
    ClusterError.
    """
    if config.cluster.backend == "local":
        return LocalLauncher(
            places,
            run_dir,
            lambda who: orchestrator().ending(who),
            lambda who, returncode: orchestrator().exited(who, returncode),
            ForkServers(run_dir) if config.cluster.fork_server else None,
        )
    slurm = config.cluster.slurm
    ears = _Ears(orchestrator, tell)
    launcher = SlurmLauncher(config, places, run_dir, QueueWatch(slurm.poll_s), ears)
    if slurm.topology != "pool":  # there every worker has a job of its own
        launcher.steps = StepLauncher(
            await _allocation_for(config, run_dir),
            components(config),
            places,
            run_dir,
            slurm,
            on_exit=launcher.step_ended,
            step_of=lambda who: orchestrator().step_of(who),
            calm=lambda: is_calm(orchestrator().state),
        )
    launcher.recall(recalled(read_timeline(run_dir / TIMELINE)))
    return launcher


def chores(
    config: Config,
    run_dir: Path,
    orchestrator: Orchestrator,
    launcher: Launcher,
    standbys: Callable[[], int],
    left: Sequence[Place],
) -> Iterator[Coroutine[None, None, None]]:
    """What a head has to do beside. standbys: how many are connected. left: where the processes
    are that an earlier head has started.
    """
    slurm = config.cluster.slurm
    if config.cluster.backend == "local":
        return
    if left:
        steps = launcher.steps if isinstance(launcher, SlurmLauncher) else None
        yield look_for(
            left,
            own_job(run_dir),
            lambda: orchestrator.state,
            orchestrator.reported_gone,
            lambda node: steps is None or steps.allocation.has(node),
        )
    if slurm.standby_head:
        yield StandbyKeeper(
            run_dir,
            slurm,
            allocation=lambda: find_allocation(run_dir),
            waiting=standbys,
            calm=lambda: is_calm(orchestrator.state),
            avoid=lambda: launcher.bad.reasons if isinstance(launcher, SlurmLauncher) else (),
        ).keep()


class _Ears:
    """Passes on what Slurm's launcher tells, to who is made after it."""

    def __init__(self, orchestrator: Callable[[], Orchestrator], tell: Tell) -> None:
        self.tell = tell
        self._orchestrator = orchestrator

    def queued(self, who: Incarnation, job: str, reason: str, expected_start: str) -> None:
        self._orchestrator().queued(who, job, reason, expected_start)

    def ended(self, who: Incarnation, cause: str) -> None:
        self._orchestrator().reported_gone(who, cause)

    def connected(self, who: Incarnation) -> bool:
        return who in self._orchestrator().heard


async def _allocation_for(config: Config, run_dir: Path) -> Allocation:
    parts, allocation = components(config), await find_allocation(run_dir)
    if len(allocation.nodes) < len(parts):
        raise ClusterError(
            f"job {allocation.job} has {len(allocation.nodes)} components, and topology"
            f" {config.cluster.slurm.topology} has {len(parts)}"
        )
    return allocation


async def find_allocation(run_dir: Path, environ: Mapping[str, str] = os.environ) -> Allocation:
    """The nodes of the job that this process belongs to, else of the run's newest job; as they are
    now, if Slurm says. Raises ClusterError.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        heads = [j.job for j in jobs.jobs_of(run_dir) if j.kind == jobs.HEAD]
        if not heads:
            raise ClusterError(f"{run_dir}: cluster.backend is slurm, and there is no job for it")
        job = heads[-1]
    try:
        text = await acall(["squeue", "-h", "-j", job, "-o", SQUEUE_FORMAT])
        found, why = of_queue(job, text), "it has no nodes"
    except SlurmError as error:
        found, why = None, str(error)
    found = found or of_environment(environ)
    if found is None:
        raise ClusterError(f"job {job} of the run cannot be used: {why}")
    return found


def control_address(config: Config) -> str:
    """Where the head listens for workers. Raises ConfigError about `transport.interface`."""
    interface = config.transport.interface
    if interface is not None or config.cluster.backend == "local":
        # Unless told otherwise all workers and clients are on this machine.
        return data_address(interface, LOOPBACK)
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    return reachable_address([str(entry[4][0]) for entry in found], read_interfaces())


def is_calm(state: State) -> bool:
    """Whether the run serves and no worker is on its way, so that spares disturb nobody."""
    arriving = any(worker.phase in _ARRIVING for worker in state.workers.values())
    return state.phase is RunPhase.RUNNING and not arriving
