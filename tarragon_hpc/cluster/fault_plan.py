"""Which faults come when, from a seed. Pure: who is hit is decided when the time has come."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tarragon_hpc.cluster.faults import CUT, SILENCE, SLOW, STOP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

_NEVER = 0.25
_PAUSE_S = (0.05, 3.0)
_SLOW_S = (0.5, 5.0)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault. at_s: since the beginning. draw: in [0, 1), chooses among those there are.

    lasts_s: after a stop, until the process is continued; of a slowdown or a fault of the network,
    its length. None: never continued, or the fault is no such thing.
    """

    at_s: float
    fault: str
    draw: float
    lasts_s: float | None = None

    def choose(self, candidates: Sequence[T]) -> T:
        """The one of them that is hit; there must be one."""
        return candidates[int(self.draw * len(candidates))]


def plan_faults(
    seed: int, mtbf_s: float, faults: Sequence[str], duration_s: float | None = None
) -> Iterator[PlannedFault]:
    """Faults with exponentially distributed times between them, until `duration_s` or for ever.

    The same arguments give the same faults; a longer duration only adds some at the end. A quarter
    of the stops is for good.
    """
    rng = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += rng.expovariate(1 / mtbf_s)
        if duration_s is not None and at_s >= duration_s:
            return
        yield draw_fault(rng, at_s, faults)


def draw_fault(rng: random.Random, at_s: float, faults: Sequence[str]) -> PlannedFault:
    """One fault of these kinds; takes the same number of draws whatever comes out."""
    fault = faults[int(rng.random() * len(faults))]
    draw, for_good = rng.random(), rng.random() < _NEVER
    pause_s, slow_s = rng.uniform(*_PAUSE_S), rng.uniform(*_SLOW_S)
    lasts = {STOP: None if for_good else pause_s, SLOW: slow_s, CUT: pause_s, SILENCE: pause_s}
    return PlannedFault(at_s, fault, draw, lasts.get(fault))
