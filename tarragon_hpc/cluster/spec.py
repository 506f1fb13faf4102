"""Configuration → what each worker process gets: CPUs, GPU, environment, program. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.resources import components
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Incarnation, Role, parse_worker_id, worker_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.config import Config

ENTRY = (sys.executable, "-m", "tarragon_hpc.cluster.entry")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker's place; the same for all its incarnations.

    `cpus` None: not bound. `shares_cpus`: AWs and EWs compute on the same CPUs. `env` is added to
    the head's own environment. `prefix`: words before the program, which must become it by exec.
    """

    worker: str
    role: Role
    cpus: tuple[int, ...] | None
    env: Mapping[str, str] = field(default_factory=dict)
    shares_cpus: bool = False
    program: tuple[str, ...] = ENTRY
    prefix: tuple[str, ...] = ()

    def command(self, who: Incarnation, run_dir: Path, parent: int, lifeline: int) -> list[str]:
        """The command line of one incarnation, a child of process `parent` that holds the
        descriptor `lifeline` open until it ends.
        """
        arguments = self.arguments(who, run_dir, parent)
        return [*self.prefix, *self.program, *arguments, "--lifeline", str(lifeline)]

    def arguments(self, who: Incarnation, run_dir: Path, parent: int | None = None) -> list[str]:
        """What the program is told but for the lifeline. parent: the process to die with."""
        arguments = ["--worker", who.worker, "--incarnation", str(who.number)]
        arguments += ["--run-dir", str(run_dir)]
        if parent is not None:
            arguments += ["--parent", str(parent)]
        if self.cpus is not None:
            arguments += ["--cpus", ",".join(map(str, self.cpus))]
        if self.shares_cpus:
            arguments += ["--shares-cpus"]
        return arguments


def plan_workers(config: Config, cpus: Sequence[int], gpus: Sequence[str]) -> list[WorkerSpec]:
    """The workers of a run on one machine with these CPUs and GPUs (ids for CUDA).

    AWs split the CPUs evenly among themselves, and EWs split the same CPUs among themselves: a
    layer alternates between attention and experts, so the two seldom compute at once. With more
    workers of a role than CPUs some share one. GPUs are dealt out AWs first, one each; with fewer
    GPUs than workers some share one. CSs have no place of their own (`store_spec`).
    Raises ConfigError if the AWs that share a GPU claim more than all of its memory.
    """
    counts = {Role.AW: config.attention.workers, Role.EW: config.experts.workers}
    threads = {Role.AW: config.attention.threads, Role.EW: config.experts.threads}
    prefixes = config.cluster.prefix
    specs: list[WorkerSpec] = []
    sharing: dict[str, int] = {}
    for role, count in counts.items():
        for number in range(count):
            share = cpu_share(cpus, number, count)
            env = {"OMP_NUM_THREADS": str(threads[role] or len(share))}
            if gpus:
                gpu = gpus[len(specs) % len(gpus)]
                env["CUDA_VISIBLE_DEVICES"] = gpu
                sharing[gpu] = sharing.get(gpu, 0) + (role is Role.AW)
            pinned = share if config.cluster.pin == "auto" else None
            worker = worker_id(role, number)
            prefix = prefix_of(worker, prefixes)
            specs.append(WorkerSpec(worker, role, pinned, env, shares_cpus=not gpus, prefix=prefix))
    fraction = config.attention.gpu_memory_fraction
    for gpu, workers in sharing.items():
        if workers > 1 and workers * fraction > 1:
            raise ConfigError(
                "attention.gpu_memory_fraction",
                f"{fraction:g}: {workers} AWs share GPU {gpu}; at most {1 / workers:.2f} each",
            )
    stores = (worker_id(Role.CS, number) for number in range(config.checkpoint.stores))
    return [*specs, *(store_spec(store, prefixes, shares_cpus=not gpus) for store in stores)]


def plan_steps(config: Config) -> list[WorkerSpec]:
    """The workers of a run whose places are Slurm's to give: CPUs and GPU of a slot are bound and
    named by Slurm. Raises ConfigError.
    """
    slots = {role: part.config for part in components(config) for role in part.roles}
    threads = {Role.AW: config.attention.threads, Role.EW: config.experts.threads}
    prefixes = config.cluster.prefix
    specs = []
    for role, count in ((Role.AW, config.attention.workers), (Role.EW, config.experts.workers)):
        env = {"OMP_NUM_THREADS": str(threads[role] or slots[role].cpus_per_slot)}
        workers = (worker_id(role, number) for number in range(count))
        specs += [WorkerSpec(w, role, None, env, prefix=prefix_of(w, prefixes)) for w in workers]
    stores = (worker_id(Role.CS, number) for number in range(config.checkpoint.stores))
    return [*specs, *(store_spec(store, prefixes, shares_cpus=False) for store in stores)]


def prefix_of(worker: str, prefixes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The words before a worker's command: its own, else its role's, else none."""
    role, _ = parse_worker_id(worker)
    return tuple(prefixes.get(worker, prefixes.get(role, ())))


def store_spec(
    worker: str, prefixes: Mapping[str, Sequence[str]], *, shares_cpus: bool
) -> WorkerSpec:
    """A CS copies bytes and nothing else: one thread, wherever there is a CPU to spare, no GPU."""
    env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return WorkerSpec(worker, Role.CS, None, env, shares_cpus, prefix=prefix_of(worker, prefixes))


def cpu_share(cpus: Sequence[int], number: int, count: int) -> tuple[int, ...]:
    """The CPUs of the `number`-th of `count` workers: neighbours, shares differ by at most one."""
    if count > len(cpus):
        return (cpus[number % len(cpus)],)
    first, end = (len(cpus) * n // count for n in (number, number + 1))
    return tuple(cpus[first:end])
