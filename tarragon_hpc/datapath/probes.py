"""Is the process at the other end of a silent channel still there? Pure (DESIGN §3, paper §4.1).

While an EW owes a reply and has been silent for an interval, it is probed on the channel's control
side, once per interval; replies count as signs of life, so nothing is probed under load. One that
leaves several probes in a row unanswered is *silent*: stopped, or cut off.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Asked:
    last: float  # when it was probed last
    answered: int  # how many probes it had answered by then, in all
    misses: int = 0


class Probes:
    """Of one REFE. `answered` counts the probes that a peer has answered since it was connected."""

    def __init__(self, interval_s: float, misses: int) -> None:
        self.interval_s = interval_s
        self._limit = misses
        self._asked: dict[str, _Asked] = {}

    def __repr__(self) -> str:
        return f"Probes({ {w: a.misses for w, a in self._asked.items()} })"

    def look(self, worker: str, owing_since: float, answered: int, now: float) -> tuple[bool, bool]:
        """(probe it now, it is silent) for an EW that has owed a reply for so long."""
        asked = self._asked.get(worker)
        if asked is None or asked.last < owing_since:
            if now - owing_since < self.interval_s:
                return False, False
            self._asked[worker] = _Asked(now, answered)
            return True, False
        if answered > asked.answered:
            asked.answered, asked.misses = answered, 0
        if now - asked.last < self.interval_s:
            return False, asked.misses >= self._limit
        asked.misses += 1
        asked.last = now
        return True, asked.misses >= self._limit

    def next_look(self, worker: str, owing_since: float) -> float:
        """When `look` should be asked again."""
        asked = self._asked.get(worker)
        last = owing_since if asked is None or asked.last < owing_since else asked.last
        return last + self.interval_s

    def forget(self, worker: str) -> None:
        """It is connected anew."""
        self._asked.pop(worker, None)
