"""What becomes of sequences whose attention worker (AW) is gone: where, in which order, how long.

Pure: sequences are looked at, not changed. Times are seconds of the monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.gateway.balance import choose_worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.ids import Incarnation

# A sequence that an AW was lost with so often in a row, and that has got no token further in
# between, may be what ends the AWs: the others are protected from it.
MAX_FRUITLESS = 5
_RETRY_S = 0.1


def is_hopeless(state: SequenceState) -> bool:
    """Whether it was interrupted too often without a new token to be tried again."""
    return state.fruitless >= MAX_FRUITLESS


def retry_at(state: SequenceState) -> float:
    """When the AW that could not go on with a sequence may try again, if no other one serves.

    Later each time: what was in its way may take a while to pass.
    """
    return state.waits + _RETRY_S * 2.0 ** max(0, state.fruitless - 1)


def place(
    waiting: Iterable[SequenceState], load: Mapping[Incarnation, int], now: float
) -> list[tuple[SequenceState, Incarnation]]:
    """Which AW each sequence goes on with; those that have to wait are left out.

    The one whose stream has stood still for longest comes first. Each goes to the AW with the
    fewest sequences, and back to the one that it comes from only where no other one serves.
    load: sequences that every AW runs which could take more.
    """
    load = dict(load)
    placed = []
    for state in sorted(waiting, key=lambda s: s.progressed):
        others = {who: running for who, running in load.items() if who != state.left}
        who = choose_worker(others)
        if who is None and state.left in load and now >= retry_at(state):
            who = state.left
        if who is not None:
            load[who] += 1
            placed.append((state, who))
    return placed


def is_overdue(state: SequenceState, now: float, timeout_s: float) -> bool:
    """Whether a sequence has waited for an AW as long as it may."""
    return now >= state.waits + timeout_s


def next_look_s(
    waiting: Iterable[SequenceState], load: Mapping[Incarnation, int], now: float, timeout_s: float
) -> float | None:
    """Seconds until there is something to decide even if nothing happens; None if never."""
    times = [
        min(s.waits + timeout_s, retry_at(s)) if s.left in load else s.waits + timeout_s
        for s in waiting
    ]
    return max(0.0, min(times) - now) if times else None
