"""Who has which experts, who should, and which copies are in the way. Pure.

A *copy* is one expert on one live EW. It is *placed* if the placement wants it there and *extra*
if not: loaded because nobody else had the expert, or left over from an older placement.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tarragon_hpc.orchestrator.state import State, Worker

Copy = tuple[str, int]


class Holdings:
    """One state, looked at from the experts' side. Cheap to make; everything is worked out once.

    An EW that has not answered an order from before `overdue` is not counted on for new ones.
    """

    def __init__(self, state: State, overdue: float = float("-inf")) -> None:
        self.state = state
        self._overdue = overdue
        self.wanted = state.placement.candidates()
        self.goals = {w.worker: state.placement.of(w.worker) for w in state.of(Role.EW)}
        self.live = {w.worker: w for w in state.workers.values() if w.serves_experts}
        self.holders: list[list[str]] = [[] for _ in self.wanted]
        for name, worker in self.live.items():
            for expert in worker.holds:
                self.holders[expert].append(name)

    @cached_property
    def orphans(self) -> list[int]:
        """Experts that no live EW can serve."""
        return [expert for expert, holders in enumerate(self.holders) if not holders]

    @cached_property
    def settled(self) -> list[bool]:
        """For every expert: all EWs that should hold it do, and stay."""
        return [
            bool(wanted) and set(wanted) <= set(filter(self.stays, holders))
            for wanted, holders in zip(self.wanted, self.holders, strict=True)
        ]

    @cached_property
    def surplus(self) -> frozenset[Copy]:
        """Copies that nobody needs any more, or that must make room for others."""
        spare = {
            (name, expert)
            for name, worker in self.live.items()
            for expert in worker.holds - self.goals[name]
            if self.settled[expert]
        }
        return frozenset(spare | self._evicted(spare))

    def able(self, worker: Worker) -> bool:
        """Whether an EW is to hold experts at all, and does what it is told in time."""
        stuck = bool(worker.orders) and worker.orders[0].at < self._overdue
        placed = worker.worker in self.state.placement.primaries
        there = worker.responsive and not worker.awaited
        return placed and there and not worker.noticed and not stuck

    def room(self, worker: Worker) -> float:
        """How many more experts fit on an EW."""
        capacity = self.state.rules.capacity
        if capacity is None:
            return float("inf")
        return capacity - len(worker.holds | worker.loading | worker.dropping)

    def lacks(self, worker: Worker) -> frozenset[int]:
        """What an EW should hold, and neither holds nor loads nor drops."""
        has = worker.holds | worker.loading | worker.dropping
        return self.goals[worker.worker] - has

    @cached_property
    def homeless(self) -> list[int]:
        """Orphans, and those to be, that are to be loaded by whoever has room, and that nobody
        loads yet.
        """
        if self.state.rules.on_missing != "load":
            return []
        able = filter(self.able, self.live.values())
        coming = {expert for worker in able for expert in worker.loading}
        lost = [e for e, holders in enumerate(self.holders) if not any(map(self.stays, holders))]
        return [expert for expert in lost if expert not in coming]

    def stays(self, name: str) -> bool:
        """Whether this holder has not been given notice."""
        return not self.live[name].noticed

    def coldest_first(self, experts: Iterable[int]) -> list[int]:
        """The experts that are chosen least, first."""
        weight = self.state.rules.weight
        return sorted(experts, key=lambda e: (weight(e), -e))

    def _evicted(self, spare: set[Copy]) -> set[Copy]:
        """Copies that give way to experts which have no room: each has another live holder."""
        if self.state.rules.capacity is None:
            return set()
        copies = [len(holders) for holders in self.holders]
        for _, expert in spare:
            copies[expert] -= 1
        evicted: set[Copy] = set()

        def evict(victims: Iterable[Copy], short: float) -> None:
            for name, expert in victims:
                if short <= 0:
                    return
                if copies[expert] > 1 and (name, expert) not in spare | evicted:
                    copies[expert] -= 1
                    short -= 1
                    evicted.add((name, expert))

        free = 0.0
        for name, worker in self.live.items():
            if self.able(worker):
                lacks = self.lacks(worker).difference(self.homeless)
                soon = sum(name == holder for holder, _ in spare) + len(worker.dropping)
                left = self.room(worker) + soon - len(lacks)
                extras = self.coldest_first(worker.holds - self.goals[name])
                evict([(name, expert) for expert in extras], -left)
                free += max(0, left)
        evict(self._idle_copies(), len(self.homeless) - free)
        return evicted

    def _idle_copies(self) -> Iterator[Copy]:
        """Copies that answer for nothing while their primaries live, the coldest first."""
        for expert in self.coldest_first(range(len(self.holders))):
            for name in reversed(self.holders[expert]):
                if self.able(self.live[name]) and self.wanted[expert][:1] != (name,):
                    yield name, expert
