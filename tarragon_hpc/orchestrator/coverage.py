"""Which failures would be masked at once, which would not, and what they would cost. Pure.

An EW's failure is masked at once if another live EW holds everything that it holds. Pairs are
counted, not tried: a pair is not masked if one of the two alone is not, or if both are the only
holders of some expert.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import comb
from typing import TYPE_CHECKING, Any, Literal

from tarragon_hpc.ids import parse_worker_id
from tarragon_hpc.orchestrator.changes import experts_in_words, ranges
from tarragon_hpc.orchestrator.holdings import Holdings
from tarragon_hpc.orchestrator.protection import losses

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tarragon_hpc.orchestrator.state import State

OnMissing = Literal["load", "mask", "wait"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """`masked_*`: at once. `load_*`: after a load from disk, requests wait meanwhile. `lost_*`:
    not before a replacement serves (`experts.on_missing: mask` answers without those experts).
    Singles are lists of EWs, doubles numbers of pairs.
    """

    replicas_min: int
    missing: tuple[int, ...]
    masked_single: tuple[str, ...]
    load_single: tuple[str, ...]
    lost_single: tuple[str, ...]
    masked_double: int
    load_double: int
    lost_double: int
    lines: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def coverage(
    experts: int,
    holds: Mapping[str, Collection[int]],
    on_missing: OnMissing = "load",
    capacity: int | None = None,
) -> Coverage:
    """What the loss of any one or two of the live EWs in `holds` would mean.

    `capacity`: experts that fit on one EW; survivors cannot load more than that.
    """
    holders: list[list[str]] = [[] for _ in range(experts)]
    for worker, held in holds.items():
        for expert in held:
            holders[expert].append(worker)
    alone: dict[str, list[int]] = {}
    for expert, workers in enumerate(holders):
        if len(workers) == 1:
            alone.setdefault(workers[0], []).append(expert)
    twins = {frozenset(w) for w in holders if len(w) == 2 and alone.keys().isdisjoint(w)}
    total = comb(len(holds), 2)
    bare_pairs = total - comb(len(holds) - len(alone), 2) + len(twins)
    one, two = (_loadable(experts, len(holds) - n, on_missing, capacity) for n in (1, 2))
    bare = tuple(w for w in holds if w in alone)
    found = Coverage(
        replicas_min=min(map(len, holders), default=0),
        missing=tuple(e for e, workers in enumerate(holders) if not workers),
        masked_single=tuple(w for w in holds if w not in alone),
        load_single=bare if one else (),
        lost_single=() if one else bare,
        masked_double=total - bare_pairs,
        load_double=bare_pairs if two else 0,
        lost_double=0 if two else bare_pairs,
        lines=(),
    )
    return _worded(found, alone, on_missing)


def coverage_of(state: State) -> Coverage:
    """The coverage of a run as it is now; the lines also tell of AWs and CSs."""
    holds = {w.worker: w.holds for w in state.workers.values() if w.serves_experts and w.member}
    rules = state.rules
    found = coverage(state.placement.experts, holds, rules.on_missing, rules.capacity)
    return replace(found, lines=(*found.lines, *losses(state)))


def coverage_gap(state: State) -> tuple[int, int]:
    """(short, missing): experts with fewer live holders than are placed, and with none at all."""
    holdings = Holdings(state)
    return holdings.settled.count(False), len(holdings.orphans)


def _loadable(experts: int, survivors: int, on_missing: OnMissing, capacity: int | None) -> bool:
    """Whether the EWs that are left could take over everything."""
    if on_missing != "load" or survivors < 1:
        return False
    return capacity is None or capacity * survivors >= experts


def _worded(found: Coverage, alone: Mapping[str, list[int]], on_missing: OnMissing) -> Coverage:
    live = len(found.masked_single) + len(found.load_single) + len(found.lost_single)
    pairs = comb(live, 2)
    lines = [f"every expert is held by at least {found.replicas_min} of {live} live EWs"]
    if found.missing:
        lines = [f"no live EW holds {experts_in_words(found.missing)}"]
    cost = {
        "masked at once": (found.masked_single, found.masked_double),
        "a load from disk, requests wait meanwhile": (found.load_single, found.load_double),
        _LOST[on_missing]: (found.lost_single, found.lost_double),
    }
    for what, (singles, doubles) in cost.items():
        if singles or doubles:
            names = f"the loss of {_names(singles)}" if singles else "no single loss"
            if singles and singles != found.masked_single and len(alone) <= 8:
                which = (f"{w}: {ranges(alone[w])}" for w in singles)
                names += f" (only there: {'; '.join(which)})"
            lines.append(f"{what}: {names}; {doubles} of {pairs} pairs")
    return replace(found, lines=tuple(lines))


_LOST = {
    "load": "service lost until a replacement serves",
    "mask": "answered without the lost experts until a replacement serves",
    "wait": "requests wait until a replacement serves",
}


def _names(workers: Iterable[str]) -> str:
    """`ew0-2,5`; the words of worker ids, shortened."""
    return "ew" + ranges(parse_worker_id(w)[1] for w in workers)
