"""Where shadows go: away from their primaries, and so that a loss falls on all the others. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tarragon_hpc.orchestrator.rules import Rules

Held = dict[str, tuple[int, ...]]


def spread(
    primaries: Mapping[str, Sequence[int]],
    rules: Rules,
    *,
    kept: Mapping[str, Iterable[int]] | None = None,
    nodes: Mapping[str, str | None] | None = None,
) -> Held:
    """Shadows for every EW, ascending, beside those that are `kept` where they are.

    As many per expert as `rules.shadows`, the number of other EWs and their memory allow. Where
    memory is short every expert gets its first before any gets its second, the hottest first.
    `nodes`: the node of each EW, where known; a shadow goes to another node if one has room.
    """
    layout = _Layout(primaries, rules, kept or {}, nodes or {})
    order = [e for e in rules.hottest_first(1 + max(layout.owner, default=-1)) if e in layout.owner]
    for expert, copies in layout.allot(order).items():
        layout.add(expert, copies)
    # An expert may have found no room but beside its own primary: what is left goes to others.
    for copies in range(1, layout.most + 1):
        for expert in order:
            layout.add(expert, copies)
    return {w: tuple(sorted(held)) for w, held in layout.shadows.items()}


class _Layout:
    """Shadows so far, and who would inherit how much from whom."""

    def __init__(
        self,
        primaries: Mapping[str, Sequence[int]],
        rules: Rules,
        kept: Mapping[str, Iterable[int]],
        nodes: Mapping[str, str | None],
    ) -> None:
        self.workers = list(primaries)
        self.owner = {e: w for w, held in primaries.items() for e in held}
        self.shadows: dict[str, set[int]] = {w: set() for w in self.workers}
        self.most = min(rules.shadows, len(self.workers) - 1)
        self._place = {w: n for n, w in enumerate(self.workers)}
        self._rules = rules
        self._nodes = nodes
        self._held = {w: len(held) for w, held in primaries.items()}
        self._holders = {e: [w] for e, w in self.owner.items()}
        self._inherited = {w: dict.fromkeys(self.workers, 0.0) for w in self.workers}
        for worker, experts in kept.items():
            for expert in experts:
                self._put(expert, worker)

    def allot(self, order: Sequence[int]) -> dict[int, int]:
        """How many shadows each expert may have in all, for the memory that is left."""
        copies = {e: len(self._holders[e]) - 1 for e in order}
        left = float("inf")
        if self._rules.capacity is not None:
            left = sum(max(0, self._rules.capacity - held) for held in self._held.values())
        for level in range(1, self.most + 1):
            for expert in order:
                if left > 0 and copies[expert] < level:
                    copies[expert] += 1
                    left -= 1
        return copies

    def add(self, expert: int, copies: int) -> None:
        """Give an expert up to so many shadows, where there is room."""
        while len(self._holders[expert]) - 1 < copies:
            heir = min(self._roomy(expert), key=lambda w: self._rank(w, expert), default=None)
            if heir is None:
                return
            self._put(expert, heir)

    def _roomy(self, expert: int) -> Iterator[str]:
        most = self._rules.capacity
        for worker in self.workers:
            if worker not in self._holders[expert] and (most is None or self._held[worker] < most):
                yield worker

    def _rank(self, worker: str, expert: int) -> tuple[bool, float, int, int]:
        owner = self.owner[expert]
        node = self._nodes.get(worker)
        beside = node is not None and node in map(self._nodes.get, self._holders[expert])
        around = (self._place[worker] - self._place[owner]) % len(self.workers)
        return beside, self._inherited[owner][worker], self._held[worker], around

    def _put(self, expert: int, worker: str) -> None:
        self.shadows[worker].add(expert)
        self._holders[expert].append(worker)
        self._held[worker] += 1
        self._inherited[self.owner[expert]][worker] += self._rules.weight(expert)
