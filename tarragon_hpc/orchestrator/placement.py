"""Which EW holds which experts when a run begins: primaries balanced or as told (§5.3). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Role, worker_id
from tarragon_hpc.orchestrator.rules import Rules, rules_for
from tarragon_hpc.orchestrator.spread import spread

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
        """For every expert the EWs that should hold it, primary first: the content of an ERT."""
        holders: list[list[str]] = [[] for _ in range(self.experts)]
        for held in (self.primaries, self.shadows):
            for worker, experts in held.items():
                for expert in experts:
                    holders[expert].append(worker)
        return tuple(tuple(h) for h in holders)

    def of(self, worker: str) -> frozenset[int]:
        """All that an EW should hold; nothing if it has no part in the placement."""
        return frozenset((*self.primaries.get(worker, ()), *self.shadows.get(worker, ())))


def place(
    experts: int,
    config: ExpertsConfig,
    expert_bytes: int = 0,
    nodes: Mapping[str, str | None] | None = None,
) -> Placement:
    """Place a model's `experts`, of `expert_bytes` (all layers) each, on `config.workers` EWs.

    `nodes`: the node of each EW, where known. Raises ConfigError naming the key: more EWs than
    experts, more shadows than other EWs, primaries that do not fit into `experts.memory`, and for
    `experts.placement` an unknown EW, an expert out of range, twice or nowhere, an idle EW.
    """
    rules = rules_for(experts, config, expert_bytes)
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
        primaries = deal(experts, workers, rules)
    else:
        primaries = _configured(experts, workers, config.placement)
    _check_memory(primaries, rules, config.memory, expert_bytes)
    shadows = spread(primaries, rules, nodes=nodes)
    idle = [w for w in workers if not primaries[w] and not shadows[w]]
    if idle:
        raise ConfigError(_PLACEMENT, f"{idle[0]}: holds no expert; give it one or start fewer EWs")
    return Placement(experts, primaries, shadows)


def deal(experts: int, workers: Sequence[str], rules: Rules) -> dict[str, tuple[int, ...]]:
    """Experts to workers, as many to each; with frequencies, so that all draw the same load."""
    if rules.frequencies is None:
        return {w: tuple(range(i, experts, len(workers))) for i, w in enumerate(workers)}
    few, more = divmod(experts, len(workers))
    hands: dict[str, list[int]] = {w: [] for w in workers}
    load = dict.fromkeys(workers, 0.0)
    for expert in rules.hottest_first(experts):
        larger = sum(len(hand) > few for hand in hands.values())
        open_hands = [w for w in workers if len(hands[w]) < few + (larger < more)]
        worker = min(open_hands, key=lambda w: (load[w], len(hands[w])))
        hands[worker].append(expert)
        load[worker] += rules.weight(expert)
    return {w: tuple(sorted(hand)) for w, hand in hands.items()}


def _check_memory(
    primaries: Mapping[str, Sequence[int]], rules: Rules, memory: int | None, expert_bytes: int
) -> None:
    if rules.capacity is None:
        return
    worker = max(primaries, key=lambda w: len(primaries[w]))
    needed = len(primaries[worker])
    if needed > rules.capacity:
        raise ConfigError(
            "experts.memory",
            f"{memory}: {worker} answers for {needed} experts of {expert_bytes} bytes, and only "
            f"{rules.capacity} fit; at least {needed * expert_bytes}, or more experts.workers",
        )


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


def _few(items: Sequence[object], limit: int = 8) -> str:
    text = ", ".join(map(str, items[:limit]))
    return text if len(items) <= limit else f"{text}, … ({len(items)} in all)"
