"""Configuration → the parts of an allocation. Pure.

single: one component for everything. hetjob: head and stores, AWs, EWs. pool: the same three, but
the first is the head's job, and each worker gets a job of one slot of its component.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from tarragon_hpc.config import Config, NodesConfig, SlurmConfig


@dataclass(frozen=True, slots=True)
class Component:
    """Nodes of one kind. `roles` may run there; a CS and the head take no slot.

    number: the component's, as in `srun --het-group`. nodes: how many. needed: slots that workers
    fill at the start; the others are spare.
    """

    name: str
    number: int
    roles: frozenset[Role]
    nodes: int
    needed: int
    config: NodesConfig

    @property
    def slots(self) -> int:
        """Of all its nodes."""
        return self.nodes * self.config.slots


def components(config: Config) -> list[Component]:
    """The components of a run. Raises ConfigError if the nodes are too few, or a hetjob fragile."""
    slurm = config.cluster.slurm
    aws, ews = config.attention.workers, config.experts.workers
    if slurm.topology == "single":
        for key in ("head_nodes", "aw_nodes", "ew_nodes"):
            if getattr(slurm, key) is not None:
                raise ConfigError(
                    f"cluster.slurm.{key}", "is only for topology hetjob and pool; this is single"
                )
        return [_component("nodes", 0, set(Role), aws + ews, slurm.spares, slurm.nodes)]
    spares = slurm.spares if slurm.topology == "hetjob" else 0
    heads = slurm.head_nodes or _without_gpus(slurm.nodes)
    if slurm.topology == "hetjob" and heads.nodes is None and not slurm.allow_fragile:
        heads = heads.model_copy(update={"nodes": 2})  # the second is for the standby head
    found = [
        _component("head_nodes", 0, {Role.CS}, 0, 0, heads),
        _component("aw_nodes", 1, {Role.AW}, aws, spares, slurm.aw_nodes or slurm.nodes),
        _component("ew_nodes", 2, {Role.EW}, ews, spares, slurm.ew_nodes or slurm.nodes),
    ]
    fragile = [part.name for part in found if part.nodes == 1]
    if slurm.topology == "hetjob" and fragile and not slurm.allow_fragile:
        raise ConfigError(
            f"cluster.slurm.{fragile[0]}.nodes",
            "1: Slurm ends the whole job when the only node of a component fails, --no-kill or not;"
            " ask for 2 or more, use topology single, or give --allow-fragile",
        )
    return found


def _without_gpus(nodes: NodesConfig) -> NodesConfig:
    """Nodes for the head and stores only, unless they are described: they compute nothing."""
    changes = {"nodes": None, "gpus_per_node": 0, "gpu_type": None, "slots_per_node": None}
    return nodes.model_copy(update=changes)


def gpu_request(slurm: SlurmConfig, nodes: NodesConfig, count: int) -> tuple[str, str]:
    """The flag that asks for so many GPUs of a node, as the site has it, and its value."""
    kind = f"{nodes.gpu_type}:{count}" if nodes.gpu_type else str(count)
    return slurm.gpu_flag, f"gpu:{kind}" if slurm.gpu_flag == "gres" else kind


def _component(
    name: str, number: int, roles: set[Role], needed: int, spares: int, nodes: NodesConfig
) -> Component:
    fewest = max(1, -(-(needed + spares) // nodes.slots))
    count = nodes.nodes or fewest
    if count * nodes.slots < needed:
        raise ConfigError(
            f"cluster.slurm.{name}.nodes",
            f"{count}: {needed} workers need {-(-needed // nodes.slots)} nodes of"
            f" {nodes.slots} slots",
        )
    return Component(name, number, frozenset(roles), count, needed, nodes)
