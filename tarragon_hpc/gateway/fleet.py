"""The attention workers (AWs) as the gateway sees them, and which sequence each of them runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.ids import Incarnation


class Fleet:
    """Who runs what. An AW is in it from the moment it serves until it is lost.

    `owner` of a sequence is set and cleared here and nowhere else.
    """

    def __init__(self) -> None:
        self._running: dict[Incarnation, dict[str, SequenceState]] = {}
        self._newest: dict[str, int] = {}
        self._leaving: set[Incarnation] = set()
        self._silent: set[Incarnation] = set()

    def __repr__(self) -> str:
        return f"Fleet({', '.join(f'{who}: {len(on)}' for who, on in self._running.items())})"

    def __contains__(self, who: Incarnation) -> bool:
        return who in self._running

    def join(self, who: Incarnation) -> bool:
        """An AW serves. False, with no change, if it or a newer one in its place has before."""
        if who.number <= self._newest.get(who.worker, 0):
            return False
        self._newest[who.worker] = who.number
        self._running[who] = {}
        return True

    def before(self, who: Incarnation) -> list[Incarnation]:
        """Older incarnations in the place of this one that have not been lost yet."""
        return [i for i in self._running if i.worker == who.worker and i.number < who.number]

    def remove(self, who: Incarnation) -> list[SequenceState]:
        """An AW is gone; returns what it ran."""
        self._leaving.discard(who)
        self._silent.discard(who)
        lost = list(self._running.pop(who, {}).values())
        for state in lost:
            state.owner = None
        return lost

    def leaving(self, who: Incarnation) -> None:
        """An AW takes nothing new any more."""
        self._leaving.add(who)

    def silent(self, who: Incarnation) -> None:
        """An AW is not heard of: it is given nothing until it is."""
        self._silent.add(who)

    def heard(self, who: Incarnation) -> None:
        """An AW is heard again."""
        self._silent.discard(who)

    def mute(self) -> list[Incarnation]:
        """The AWs that are silent now."""
        return list(self._silent)

    def load(self) -> dict[Incarnation, int]:
        """How many sequences every AW runs that could take more."""
        closed = self._leaving | self._silent
        return {who: len(on) for who, on in self._running.items() if who not in closed}

    def why_none(self) -> str | None:
        """Why no AW could take a sequence now; None if one could."""
        if self._running.keys() - self._leaving - self._silent:
            return None
        silent = ", ".join(sorted(who.worker for who in self._silent - self._leaving))
        return f"no attention worker is serving{f' (silent: {silent})' if silent else ''}"

    def give(self, state: SequenceState, who: Incarnation) -> None:
        """This AW runs this sequence from now on; nobody else does."""
        state.owner = who
        self._running[who][state.request] = state

    def take(self, state: SequenceState) -> None:
        """Its AW has nothing more to do for this sequence. Without one, nothing happens."""
        if state.owner is not None:
            self._running.get(state.owner, {}).pop(state.request, None)
            state.owner = None

    def find(self, who: Incarnation, request: str) -> SequenceState | None:
        """The sequence of this name, if this AW runs it."""
        return self._running.get(who, {}).get(request)

    def on(self, who: Incarnation) -> list[SequenceState]:
        """What this AW runs."""
        return list(self._running.get(who, {}).values())

    def everything(self) -> list[SequenceState]:
        """What all AWs run."""
        return [state for on in self._running.values() for state in on.values()]

    def running_on(self) -> dict[str, int]:
        """AW id → how many sequences it runs."""
        return {who.worker: len(on) for who, on in self._running.items()}
