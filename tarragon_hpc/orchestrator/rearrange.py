"""A placement for other EWs than before, moving as few experts as possible. Pure and total."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.orchestrator.placement import Placement
from tarragon_hpc.orchestrator.spread import spread

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tarragon_hpc.orchestrator.rules import Rules

Primaries = dict[str, list[int]]


def rearrange(
    old: Placement,
    workers: Sequence[str],
    rules: Rules,
    *,
    holds: Mapping[str, Collection[int]] | None = None,
    nodes: Mapping[str, str | None] | None = None,
) -> Placement:
    """Place the experts of `old` on `workers`, in this order.

    Who answers for an expert and stays goes on doing so, unless an EW that is new needs its share.
    What loses its EW goes to one that has it already (as its shadow, or because it `holds` it
    anyway) as long as that one has less than its share, and else to the one with the fewest.
    Shadows stay where they are as far as the memory allows, the hottest first. Experts that fit
    nowhere have no place in the result.
    """
    primaries = {w: list(old.primaries.get(w, ())) for w in workers}
    if workers:
        _adopt(primaries, old, rules, holds or {})
        _share(primaries, [w for w in workers if w not in old.primaries])
    kept = _keep(primaries, old, rules)
    sorted_primaries = {w: tuple(sorted(held)) for w, held in primaries.items()}
    shadows = spread(sorted_primaries, rules, kept=kept, nodes=nodes)
    return Placement(old.experts, sorted_primaries, shadows)


def _adopt(
    primaries: Primaries, old: Placement, rules: Rules, holds: Mapping[str, Collection[int]]
) -> None:
    """Find an EW for every expert that has none."""
    share = -(-old.experts // len(primaries))
    most = old.experts if rules.capacity is None else rules.capacity
    placed = {e for held in primaries.values() for e in held}
    has = {w: old.of(w) | frozenset(holds.get(w, ())) for w in primaries}
    held = frozenset().union(*has.values())
    # Where there is not room for all, what somebody has already costs nothing to keep.
    for expert in sorted(rules.hottest_first(old.experts), key=lambda e: e not in held):
        if expert in placed:
            continue
        heir = min(
            (w for w, held in primaries.items() if len(held) < most),
            key=lambda w: (
                len(primaries[w]) >= share,
                expert not in has[w],  # noqa: B023 - used at once
                len(primaries[w]),
            ),
            default=None,
        )
        if heir is not None:
            primaries[heir].append(expert)


def _share(primaries: Primaries, newcomers: Sequence[str]) -> None:
    """Give EWs that are new an even share of the experts, from those that have the most."""
    share = sum(map(len, primaries.values())) // len(primaries)
    for newcomer in newcomers:
        while len(primaries[newcomer]) < share:
            donor = max(primaries, key=lambda w: len(primaries[w]))
            if len(primaries[donor]) <= len(primaries[newcomer]) + 1:
                break
            primaries[newcomer].append(primaries[donor].pop())


def _keep(primaries: Primaries, old: Placement, rules: Rules) -> dict[str, set[int]]:
    """The shadows that stay where they are: neither promoted, nor too many, nor without room."""
    owner = {e: w for w, held in primaries.items() for e in held}
    most = min(rules.shadows, len(primaries) - 1)
    copies = dict.fromkeys(owner, 0)
    kept: dict[str, set[int]] = {w: set() for w in primaries}
    for expert in rules.hottest_first(old.experts):
        for worker, held in primaries.items():
            if expert not in old.shadows.get(worker, ()) or owner.get(expert, worker) == worker:
                continue
            full = rules.capacity is not None and len(held) + len(kept[worker]) >= rules.capacity
            if copies[expert] < most and not full:
                kept[worker].add(expert)
                copies[expert] += 1
    return kept
