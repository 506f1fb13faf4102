"""The batch scripts of a run, as text. Pure: the same configuration gives the same script.

head_script    the run's job: head, and (but for pool) all workers as steps
worker_job     one worker in a job of its own

What a script asks for comes from the configuration alone; nothing is read from the environment of
whoever submits it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.resources import Component, components, gpu_request
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Incarnation, Role, parse_worker_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.config import Config, NodesConfig, SlurmConfig

Directives = dict[str, str | int | bool]
"""Names of sbatch's long options; True: without a value."""

HEAD_LOG = "head.log"
"""In the run's logs: what the batch processes of its head jobs print, one after the other."""

# What the runs' own working depends on.
_OURS = frozenset({"array", "dependency", "requeue", "signal", "wrap"})
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)


def head_script(
    config: Config, command: Sequence[str], *, job_name: str, output: str, exports: str = ""
) -> str:
    """The script of the run's job. `command` is what the batch process becomes (words of a shell).

    output: file of what it prints, as Slurm's pattern; exports: a shell line before the command.
    Raises ConfigError.
    """
    parts = components(config)
    if config.cluster.slurm.topology == "pool":
        parts = parts[:1]  # the workers' jobs are submitted by the head
    blocks = [_of_component(config.cluster.slurm, part) for part in parts]
    first: Directives = {
        "job-name": job_name,
        "output": output,
        "open-mode": "append",
        "signal": f"B:USR2@{config.cluster.slurm.signal_s}",
    }
    blocks[0] = first | blocks[0]
    return _text(config.cluster.slurm, blocks, command, exports)


def probes(config: Config) -> list[str]:
    """Scripts to ask Slurm about, that run nothing: the job's own, and of plain jobs as large as
    the components of a hetjob together that want the same nodes. No two of them share a node, but
    Slurm looks at each alone, and would let the whole wait for ever. Raises ConfigError.
    """
    slurm, parts = config.cluster.slurm, components(config)
    own = head_script(config, ["true"], job_name="tarragon", output="/dev/null")
    if slurm.topology != "hetjob":
        return [own]
    alike: dict[tuple[str | None, str | None], list[Component]] = {}
    for part in parts:
        alike.setdefault((part.config.partition, part.config.constraint), []).append(part)
    few = {"gpus_per_node": 0, "slots_per_node": 1, "cpus_per_slot": 1, "memory": None}
    sums = [
        replace(
            group[0],
            nodes=sum(part.nodes for part in group),
            config=group[0].config.model_copy(update=few),
        )
        for group in alike.values()
        if len(group) > 1
    ]
    return [own, *(_text(slurm, [_of_component(slurm, part)], ["true"]) for part in sums)]


def worker_job(
    config: Config,
    who: Incarnation,
    run_dir: Path,
    command: Sequence[str],
    *,
    env: Mapping[str, str] = MappingProxyType({}),
    exclude: Iterable[str] = (),
) -> str:
    """The script of a job for one worker: a slot's share of a node of its component.

    command: what the batch process becomes, the worker. exclude: names of nodes. The time limit is
    announced to it by SIGTERM, like a preemption. Raises ConfigError.
    """
    slurm = config.cluster.slurm
    role, _ = parse_worker_id(who.worker)
    part = next(p for p in components(config) if role in p.roles)
    flags: Directives = {
        "job-name": job_name(run_dir, who),
        "output": as_pattern(run_dir / "logs" / f"{who}.log"),
        "open-mode": "append",
        "signal": f"B:TERM@{slurm.signal_s}",
    }
    flags |= _of_nodes(slurm, part, nodes=1, slots=1, gpus=role is not Role.CS)
    if names := sorted(set(exclude)):
        flags["exclude"] = ",".join(names)
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    return _text(slurm, [flags], [shlex.quote(word) for word in command], exports)


def job_name(run_dir: Path, who: Incarnation) -> str:
    """Of the job of one worker; no other has it."""
    return f"{run_dir.name}-{who}"


def _of_component(slurm: SlurmConfig, part: Component) -> Directives:
    """What one component of the run's job asks for."""
    flags = _of_nodes(slurm, part, nodes=part.nodes, slots=part.config.slots, gpus=True)
    return flags | {"no-kill": True}


def _of_nodes(
    slurm: SlurmConfig, part: Component, *, nodes: int, slots: int, gpus: bool
) -> Directives:
    """Nodes, and so many slots of each. Head, stores and spares' spare time share these CPUs."""
    config = part.config
    flags: Directives = {"nodes": nodes, "ntasks-per-node": slots}
    flags["cpus-per-task"] = config.cpus_per_slot
    whole = slots == config.slots
    if gpus and config.gpus_per_node:
        count = config.gpus_per_node if whole else slots * config.gpus_per_slot
        flag, value = gpu_request(slurm, config, count)
        flags[flag] = value
    if config.memory is not None:
        flags["mem"] = config.memory if whole else _share(config.memory, slots, config.slots)
    flags |= where(slurm, config)
    # Recovery is ours: a requeue starts everything anew, two minutes later at the earliest.
    return flags | {"time": slurm.time, "no-requeue": True}


def where(slurm: SlurmConfig, nodes: NodesConfig) -> Directives:
    """Which nodes, and on whose account."""
    named = {
        "partition": nodes.partition,
        "constraint": nodes.constraint,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
    }
    return {name: value for name, value in named.items() if value is not None}


def site_flags(slurm: SlurmConfig) -> Directives:
    """The flags that the site adds."""
    return {key.lstrip("-"): value for key, value in slurm.directives.items()}


def skipped(slurm: SlurmConfig) -> set[str]:
    """The flags that the site wants to be left out."""
    return {key.lstrip("-") for key in slurm.directives_skip}


def _text(
    slurm: SlurmConfig, blocks: Sequence[Directives], command: Sequence[str], exports: str = ""
) -> str:
    for key in slurm.directives:
        if key in _OURS:
            raise ConfigError(
                f"cluster.slurm.directives.{key}", "is not for sites and users: runs depend on it"
            )
    lines = ["#!/bin/bash"]
    for number, block in enumerate(blocks):
        if number:
            lines.append("#SBATCH hetjob")
        theirs = site_flags(slurm)
        flags = block | theirs
        if "exclude" in block and "exclude" in theirs:
            flags["exclude"] = f"{block['exclude']},{theirs['exclude']}"
        skip = skipped(slurm)
        lines += [_directive(k, v) for k, v in flags.items() if k not in skip and v is not False]
    lines.append("")
    lines += shell_lines(slurm)
    lines += [exports] if exports else []
    return "\n".join([*lines, f"exec {' '.join(command)}", ""])


def shell_lines(slurm: SlurmConfig) -> list[str]:
    """What a site or user wants done in a shell before the head, and before every worker."""
    modules = [f"module load {' '.join(map(shlex.quote, slurm.modules))}"] if slurm.modules else []
    return modules + [line for line in slurm.prologue.splitlines() if line.strip()]


def _directive(name: str, value: str | int) -> str:
    if any(ord(letter) < ord(" ") for letter in str(value)):
        raise ConfigError("cluster.slurm", f"--{name} {value!r}: must be one line of text")
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def as_pattern(path: Path) -> str:
    """A file name for --output in which Slurm replaces nothing."""
    return str(path).replace("%", "%%")


def _share(memory: str, slots: int, of: int) -> str:
    """A part of a node's memory; `0` (all of it), or what is no number, stays."""
    match = _MEMORY.fullmatch(memory)
    if match is None or not int(match[1]):
        return memory
    count, unit = int(match[1]) * slots, match[2].upper()
    while count % of and unit in ("G", "T"):
        count, unit = count * 1024, "M" if unit == "G" else "G"
    return f"{count // of}{unit}"
