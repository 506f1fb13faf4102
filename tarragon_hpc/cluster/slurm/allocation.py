"""Which nodes a job has, by component. Pure: from the job's environment, or from `squeue`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.hostlist import expand
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

SQUEUE_FORMAT = "%i|%A|%N"
"""What `squeue -h -o` is to print for `of_queue`."""

_ID = re.compile(r"([0-9]+)(?:\+([0-9]+))?")


@dataclass(frozen=True, slots=True)
class Allocation:
    """job: its id, of a heterogeneous one the leader's. nodes: of each component, from 0 on; a
    node that failed is no longer listed, and a component may have none left. ids: the components'
    own job ids, under which `squeue` has their steps.
    """

    job: str
    nodes: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] = ()

    @property
    def het(self) -> bool:
        """Whether steps must say which component they are for."""
        return len(self.nodes) > 1

    @property
    def listed_as(self) -> str:
        """Whose steps `squeue -s -j` is to list."""
        return ",".join(dict.fromkeys((self.job, *self.ids)))

    def has(self, node: str) -> bool:
        """Whether a node belongs to any component."""
        return any(node in part for part in self.nodes)


def of_environment(environ: Mapping[str, str]) -> Allocation | None:
    """As it was when the job started; None outside of a job. Raises ClusterError."""
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    if not job.isdecimal():
        raise ClusterError(f"SLURM_JOB_ID: {job!r} is no job id")
    size = environ.get("SLURM_HET_SIZE", "1")
    if not size.isdecimal() or not 1 <= int(size) <= 128:
        raise ClusterError(f"SLURM_HET_SIZE: {size!r} is no number of components")
    if size == "1":
        return Allocation(job, (_nodes(environ, "SLURM_JOB_NODELIST"),))
    numbers = range(int(size))
    nodes = tuple(_nodes(environ, f"SLURM_JOB_NODELIST_HET_GROUP_{n}") for n in numbers)
    ids = (environ.get(f"SLURM_JOB_ID_HET_GROUP_{n}", "") for n in numbers)
    return Allocation(job, nodes, tuple(i for i in ids if i.isdecimal()))


def of_queue(job: str, text: str) -> Allocation | None:
    """As it is now, from the lines of a `squeue` with SQUEUE_FORMAT; None if the job has no nodes
    there. Raises ClusterError.
    """
    parts: dict[int, tuple[str, ...]] = {}
    ids: dict[int, str] = {}
    for line in text.splitlines():
        name, own, nodes = (line.strip().split("|") + ["", ""])[:3]
        match = _ID.fullmatch(name)
        if match is not None and match[1] == job:
            number = int(match[2] or 0)
            parts[number] = expand(nodes) if nodes else ()
            ids[number] = own
    if not any(parts.values()):
        return None
    nodes_of = tuple(parts.get(n, ()) for n in range(max(parts) + 1))
    return Allocation(job, nodes_of, tuple(i for _, i in sorted(ids.items()) if i))


def _nodes(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = environ.get(name, "")
    if not text:
        raise ClusterError(f"{name} is not set, though SLURM_JOB_ID is: this is no job's shell")
    return expand(text)
