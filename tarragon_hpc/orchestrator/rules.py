"""What holds for the whole life of a run, whatever its workers; part of its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from tarragon_hpc.errors import ConfigError

if TYPE_CHECKING:
    from tarragon_hpc.config import ExpertsConfig


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`shadows`: wanted per expert. `capacity`: experts that fit on one EW (None: any number).
    `frequencies`: how often each expert is chosen, by its id. `replicas`: checkpoint stores that
    keep each request's KV; 0: its AWs know of no stores.
    """

    on_missing: Literal["load", "mask", "wait"] = "load"
    shadows: int = 0
    capacity: int | None = None
    frequencies: list[float] | None = None
    replicas: int = 0

    def weight(self, expert: int) -> float:
        """How much of the load an expert draws."""
        return 1.0 if self.frequencies is None else self.frequencies[expert]

    def hottest_first(self, experts: int) -> list[int]:
        """All experts of the model, the most often chosen first; without frequencies by id."""
        return sorted(range(experts), key=lambda e: (-self.weight(e), e))


def rules_for(
    experts: int, config: ExpertsConfig, expert_bytes: int = 0, replicas: int = 0
) -> Rules:
    """The rules of a configuration for a model with `experts` of `expert_bytes` (all layers) each.

    `replicas`: stores that keep each request's KV; 0 in a run that begins without any.
    Raises ConfigError if `experts.frequencies` is not one number per expert.
    """
    frequencies = config.frequencies
    if frequencies is not None and len(frequencies) != experts:
        problem = f"{len(frequencies)} numbers; the model has {experts} experts, one number each"
        raise ConfigError("experts.frequencies", problem)
    capacity = None
    if config.memory is not None and expert_bytes > 0:
        capacity = config.memory // expert_bytes
    return Rules(config.on_missing, config.shadows, capacity, frequencies, replicas)
