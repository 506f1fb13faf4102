"""The command lines of steps: one task each, pinned to a node. Pure.

`--exact` and `--gres` say what a step takes: without them it takes all that the job has on its node
and the next one waits for ever. `--mem=0` shares the job's memory. `--no-kill` and
`--kill-on-bad-exit=0` leave it alone when something else fails. `--immediate` bounds the wait for a
place that is not free. `--jobid` is given, since who starts steps need not be part of the job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.resources import gpu_request
from tarragon_hpc.cluster.slurm.script import shell_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tarragon_hpc.cluster.slurm.allocation import Allocation
    from tarragon_hpc.config import NodesConfig, SlurmConfig

# Which GPUs the head sees is no matter of a worker's; Slurm tells it its own.
_NOT_PASSED_ON = frozenset(
    {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}
)


def worker_step(
    allocation: Allocation,
    part: int,
    node: str,
    name: str,
    command: Sequence[str],
    *,
    slurm: SlurmConfig,
    nodes: NodesConfig,
    reads: bool = False,
) -> list[str]:
    """A step that takes one slot of a node. reads: it is sent a line on its standard input."""
    takes = [*_gpu(slurm, nodes), f"--cpus-per-task={nodes.cpus_per_slot}"]
    return _step(allocation, part, node, name, command, slurm, takes, reads=reads)


def side_step(
    allocation: Allocation,
    part: int,
    node: str,
    name: str,
    command: Sequence[str],
    *,
    slurm: SlurmConfig,
) -> list[str]:
    """A step that takes nothing away from the others: of a CS, of a standby head."""
    takes = ["--overlap", "--gres=none", "--cpus-per-task=1"]
    return _step(allocation, part, node, name, command, slurm, takes, reads=False)


def prepared(command: Sequence[str], slurm: SlurmConfig) -> list[str]:
    """A command after the shell lines that the site needs before every process."""
    lines = shell_lines(slurm)
    if not lines:
        return list(command)
    return ["bash", "-c", "\n".join([*lines, 'exec "$@"']), "bash", *command]


def step_environment(plain: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """What a step's srun, and so the step, gets. own: the worker's part of it."""
    kept = {name: value for name, value in plain.items() if name not in _NOT_PASSED_ON}
    return kept | dict(own)


def _step(
    allocation: Allocation,
    part: int,
    node: str,
    name: str,
    command: Sequence[str],
    slurm: SlurmConfig,
    takes: Sequence[str],
    *,
    reads: bool,
) -> list[str]:
    return [
        "srun",
        f"--jobid={allocation.job}",
        *([f"--het-group={part}"] if allocation.het else []),
        "--exact",
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={node}",
        *takes,
        "--mem=0",
        f"--immediate={slurm.step_wait_s}",
        "--no-kill",
        "--kill-on-bad-exit=0",
        "--mpi=none",
        *([] if reads else ["--input=none"]),
        f"--job-name={name}",
        *prepared(command, slurm),
    ]


def _gpu(slurm: SlurmConfig, nodes: NodesConfig) -> list[str]:
    if not nodes.gpus_per_slot:
        return ["--gres=none"]
    flag, value = gpu_request(slurm, nodes, nodes.gpus_per_slot)
    return [f"--{flag}={value}"]
