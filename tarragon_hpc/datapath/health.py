"""How long an EW usually takes, when that is too long, and when it gets work again. Pure.

Progress, not only life: a stopped or hung EW keeps its connection. A reply later than usual by a
factor is *overdue*: its rows are asked elsewhere as well, and the EW is *avoided* while it owes an
answer that nobody waits for any more. One that keeps being late is avoided for longer each time.
"""

from __future__ import annotations

from dataclasses import dataclass

# Weight of the newest reply; a reply counts as at most so many times the usual.
_RATE = 1 / 8
_OUTLIER = 4.0
# Late again within `_FORGET_S` of being trusted again: avoided for `_FIRST_S`, then twice as long …
_FORGET_S = 5.0
_FIRST_S = 0.05
_LONGEST_S = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """When a reply is overdue, in seconds: `factor` times the usual, within floor and ceiling."""

    factor: float = 8.0
    floor_s: float = 0.025
    ceiling_s: float = 0.1


@dataclass(slots=True)
class _Avoided:
    until: float
    strikes: int


class Health:
    """Of the EWs of one REFE. Times are seconds of one monotonic clock."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._usual: dict[tuple[str, int], float] = {}
        self._avoided: dict[str, _Avoided] = {}
        self._strikes: dict[str, tuple[int, float]] = {}  # how often late, and trusted since when

    def __repr__(self) -> str:
        return f"Health(avoided={sorted(self._avoided)})"

    @property
    def avoided(self) -> tuple[str, ...]:
        """EWs that get no work as long as another one can do it; those that have been avoided for
        longest, which are the least likely to answer, first.
        """
        return tuple(self._avoided)

    def known(self) -> frozenset[str]:
        """EWs about which anything is known."""
        return frozenset({w for w, _ in self._usual} | self._avoided.keys() | self._strikes.keys())

    def answered(self, worker: str, pairs: int, seconds: float) -> None:
        """A reply of `pairs` output rows came so long after its request."""
        key = worker, pairs.bit_length()
        usual = self._usual.get(key)
        if usual is None:
            self._usual[key] = seconds
        else:
            self._usual[key] = usual + _RATE * (min(seconds, _OUTLIER * usual) - usual)

    def patience(self, worker: str, pairs: int) -> float:
        """Seconds after which such a reply is overdue."""
        p = self._patience
        size = pairs.bit_length()
        usual = self._usual.get((worker, size))
        if usual is None:
            # Not seen yet: as long as smaller ones in proportion, or as long as is allowed.
            usual = max(
                (
                    u * 2.0 ** (size - s)
                    for (w, s), u in self._usual.items()
                    if w == worker and s < size
                ),
                default=p.ceiling_s,
            )
        return min(p.ceiling_s, max(p.floor_s, p.factor * usual))

    def avoid(self, worker: str, now: float) -> bool:
        """It is late. True if it was not avoided already."""
        if worker in self._avoided:
            return False
        strikes, since = self._strikes.pop(worker, (0, now))
        if now - since > _FORGET_S:
            strikes = 0
        wait = min(_LONGEST_S, _FIRST_S * 2 ** (strikes - 1)) if strikes else 0.0
        self._avoided[worker] = _Avoided(now + wait, strikes + 1)
        return True

    def may_return(self, worker: str, now: float) -> bool:
        """Whether an avoided EW that owes nothing any more gets work again."""
        return now >= self._avoided[worker].until

    def trust(self, worker: str, now: float) -> None:
        """It gets work again."""
        avoided = self._avoided.pop(worker, None)
        if avoided is not None:
            self._strikes[worker] = avoided.strikes, now

    def forget(self, worker: str) -> None:
        """Another process has this name now, or none."""
        self._avoided.pop(worker, None)
        self._strikes.pop(worker, None)
        for key in [k for k in self._usual if k[0] == worker]:
            del self._usual[key]
