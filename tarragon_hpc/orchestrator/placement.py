"""Which EW holds which experts: primaries balanced or as told, shadows spread (§5.3). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Role, worker_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tarragon_hpc.config import ExpertsConfig

_PLACEMENT = "experts.placement"


@dataclass(frozen=True, slots=True)
class Placement:
    """Expert ids per EW, ascending: what it answers for, and what it holds as a shadow."""

    experts: int
    primaries: Mapping[str, tuple[int, ...]]
    shadows: Mapping[str, tuple[int, ...]]

    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """For every expert the EWs that hold it, primary first: the content of an ERT."""
        holders: list[list[str]] = [[] for _ in range(self.experts)]
        for held in (self.primaries, self.shadows):
            for worker, experts in held.items():
                for expert in experts:
                    holders[expert].append(worker)
        return tuple(tuple(h) for h in holders)


def place(experts: int, config: ExpertsConfig) -> Placement:
    """Place a model's `experts` on `config.workers` EWs.

    Raises ConfigError naming the key: more EWs than experts, more shadows than other EWs, and for
    `experts.placement` an unknown EW, an expert out of range, twice or nowhere, an idle EW.
    """
    workers = [worker_id(Role.EW, n) for n in range(config.workers)]
    if len(workers) > experts:
        problem = f"{len(workers)}: more EWs than the model's {experts} experts"
        raise ConfigError("experts.workers", problem)
    if config.shadows >= len(workers):
        problem = (
            f"{config.shadows}: shadows sit on other EWs; at most experts.workers - 1 = "
            f"{len(workers) - 1}"
        )
        raise ConfigError("experts.shadows", problem)
    if config.placement is None:
        primaries = {w: tuple(range(i, experts, len(workers))) for i, w in enumerate(workers)}
    else:
        primaries = _configured(experts, workers, config.placement)
    shadows = _spread(primaries, config.shadows)
    idle = [w for w in workers if not primaries[w] and not shadows[w]]
    if idle:
        raise ConfigError(_PLACEMENT, f"{idle[0]}: holds no expert; give it one or start fewer EWs")
    return Placement(experts, primaries, shadows)


def _configured(
    experts: int, workers: Sequence[str], wanted: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    owner: dict[int, str] = {}
    for worker, held in wanted.items():
        if worker not in workers:
            problem = f"{worker}: unknown EW; experts.workers is {len(workers)}, so: "
            raise ConfigError(_PLACEMENT, problem + _few(workers))
        for expert in held:
            if not 0 <= expert < experts:
                raise ConfigError(
                    f"{_PLACEMENT}.{worker}", f"{expert}: the model's experts are 0..{experts - 1}"
                )
            if expert in owner:
                raise ConfigError(
                    f"{_PLACEMENT}.{worker}",
                    f"{expert}: already on {owner[expert]}; replicas are made by experts.shadows",
                )
            owner[expert] = worker
    missing = [expert for expert in range(experts) if expert not in owner]
    if missing:
        raise ConfigError(_PLACEMENT, f"no EW holds expert {_few(missing)}")
    return {w: tuple(sorted(wanted.get(w, ()))) for w in workers}


def _spread(primaries: Mapping[str, tuple[int, ...]], copies: int) -> dict[str, tuple[int, ...]]:
    """Shadows such that the load of any one EW falls on all the others, and all hold alike."""
    workers = list(primaries)
    shadows: dict[str, list[int]] = {w: [] for w in workers}
    for index, worker in enumerate(workers):
        inherited = dict.fromkeys(workers, 0)
        for expert in primaries[worker]:
            for _ in range(copies):
                heir = min(
                    (w for w in workers if w != worker and expert not in shadows[w]),
                    key=lambda w: (
                        inherited[w],  # noqa: B023 - used at once
                        len(primaries[w]) + len(shadows[w]),
                        (workers.index(w) - index) % len(workers),  # noqa: B023
                    ),
                )
                shadows[heir].append(expert)
                inherited[heir] += 1
    return {w: tuple(sorted(held)) for w, held in shadows.items()}


def _few(items: Sequence[object], limit: int = 8) -> str:
    text = ", ".join(map(str, items[:limit]))
    return text if len(items) <= limit else f"{text}, … ({len(items)} in all)"
