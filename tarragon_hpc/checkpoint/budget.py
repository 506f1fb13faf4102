"""A bandwidth limit: a token bucket."""

from __future__ import annotations

# What was not used is kept for so long: the bucket is never fuller than that.
_KEPT_S = 0.05


class Budget:
    """Units that may be spent, `per_second` new ones every second. Pure: time is told.

    least: the bucket holds at least so many, so that the largest indivisible thing can be paid.
    """

    def __init__(self, per_second: float, least: float) -> None:
        self._per_second = per_second
        self._full = max(per_second * _KEPT_S, least)
        self._left = self._full
        self._now: float | None = None

    def __repr__(self) -> str:
        return f"Budget({self._left:.0f} of {self._full:.0f})"

    def left(self, now: float) -> float:
        """What may be spent at the moment `now`, in seconds of a clock that does not go back."""
        if self._now is not None:
            gained = (now - self._now) * self._per_second
            self._left = min(self._full, self._left + gained)
        self._now = now
        return self._left

    def spend(self, amount: float) -> None:
        """Take so much."""
        self._left -= amount
