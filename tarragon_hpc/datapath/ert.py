"""Expert routing table (ERT): logical expert id → the EWs that hold it (paper §4.2).

Immutable; every change is a new table with a higher epoch, published by the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ERT:
    """`candidates[e]`: ids of the EWs that hold expert e, primary first, then its shadows."""

    epoch: int
    candidates: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, epoch: int, candidates: Sequence[Sequence[str]]) -> ERT:
        """A table from any nested sequence (a Table message, say)."""
        return cls(epoch, tuple(tuple(c) for c in candidates))

    @property
    def workers(self) -> tuple[str, ...]:
        """All EWs in the table, in order of first mention."""
        return tuple(dict.fromkeys(w for c in self.candidates for w in c))

    def owners(
        self,
        workers: Sequence[str],
        lost: Set[str] = frozenset(),
        avoid: Sequence[str] = (),
        nobody: int = -1,
    ) -> NDArray[np.int32]:
        """For each expert the index in `workers` of its first candidate that is neither lost nor to
        be avoided, else of the one to be avoided least (`avoid`: the worst first), else `nobody`.

        Shape [experts]. This is what `assign` and the native packer route by.
        """
        index = {w: i for i, w in enumerate(workers) if w not in lost}
        badness = {w: len(avoid) - n for n, w in enumerate(avoid)}

        def best(candidates: Sequence[str]) -> int:
            usable = [w for w in candidates if w in index]
            return index[min(usable, key=lambda w: badness.get(w, 0))] if usable else nobody

        return np.array([best(c) for c in self.candidates], dtype=np.int32)
