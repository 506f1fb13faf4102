"""What a batch costs whatever its size: all that running two batches as one can save."""

from __future__ import annotations

# Weight of the newest batch: some dozen batches are remembered.
_RATE = 1 / 16
# Below this relative spread of sizes their influence cannot be told from noise.
_SPREAD = 0.05


class BatchCost:
    """Seconds of a batch as `fixed + slope * rows`, fitted to the recent ones.

    On memory-bound sizes reading the weights dominates and the slope is near nothing; a prompt's
    rows cost each the same and leave little that is fixed. While all batches are of one size the
    whole time counts as fixed: only joining some will tell.
    """

    def __init__(self) -> None:
        self._rows = 0.0
        self._seconds = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """One batch that has run."""
        if self._seconds == 0:
            self._rows, self._seconds = float(rows), seconds
            return
        more, longer = rows - self._rows, seconds - self._seconds
        self._rows += _RATE * more
        self._seconds += _RATE * longer
        self._variance += _RATE * (more * more * (1 - _RATE) - self._variance)
        self._covariance += _RATE * (more * longer * (1 - _RATE) - self._covariance)

    @property
    def fixed(self) -> float:
        """Seconds that the next batch costs apart from its rows; 0 before the first."""
        if self._variance <= (_SPREAD * self._rows) ** 2:
            return self._seconds
        slope = max(0.0, self._covariance / self._variance)
        return max(0.0, self._seconds - slope * self._rows)
