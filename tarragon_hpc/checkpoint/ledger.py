"""What a checkpoint store knows of one request: who may write it, and how far it is whole.

Of every layer the positions 0 … frontier-1 are there, and so are the token ids below the *commit
frontier*; whatever would leave a gap is dropped. So the prefix that all of them cover, the
*committed* one, can be restored, whatever was lost, late, reordered or doubled on the way.

Pure; `kernels/kv_store_ledger.hpp` is its native twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Ledger:
    """Attempt, frontiers and token ids of one request.

    attempt: the newest one that the store has heard of; older ones write no more
    frontiers: by layer, the number of positions that are stored, without a gap
    tokens: the token ids of the positions below the commit frontier, which is their number
    """

    def __init__(self, layers: int, attempt: int) -> None:
        self.attempt = attempt
        self.frontiers = [0] * layers
        self.tokens: list[int] = []
        self._writer = attempt  # the newest attempt that has written

    def __repr__(self) -> str:
        return f"Ledger(attempt {self.attempt}, {self.committed} committed of {self.extent})"

    @property
    def committed(self) -> int:
        """How many positions, from 0, are there in all layers, with their token ids."""
        return min(len(self.tokens), *self.frontiers)

    @property
    def extent(self) -> int:
        """How many positions have anything stored."""
        return max(len(self.tokens), *self.frontiers)

    def take_over(self, attempt: int) -> bool:
        """Let only this attempt write from now on; False if a newer one owns the request.

        What older ones wrote stays until the new one begins to write.
        """
        if attempt < self.attempt:
            return False
        self.attempt = attempt
        return True

    def write(self, attempt: int, base: int) -> bool:
        """Must be called before the rows of each run; False if the run is stale.

        With the first run of an attempt everything from `base` on is forgotten.
        """
        if not self.take_over(attempt):
            return False
        if attempt > self._writer:
            self._writer = attempt
            self.frontiers = [min(frontier, base) for frontier in self.frontiers]
            del self.tokens[base:]
        return True

    def wanted(self, layer: int, start: int, length: int) -> range | None:
        """Which of the positions start … start+length-1 are to be stored, in this order.

        None: there is a hole before them. Empty: all are there already.
        """
        frontier = self.frontiers[layer]
        return None if start > frontier else range(frontier, max(frontier, start + length))

    def stored(self, layer: int, position: int) -> None:
        """The next of the `wanted` positions is stored."""
        assert position == self.frontiers[layer]
        self.frontiers[layer] = position + 1

    def commit(self, start: int, tokens: Sequence[int]) -> bool:
        """The step is complete that computed the positions from `start` on, with these token ids.

        False if there is a hole before them: nothing is changed.
        """
        known = len(self.tokens)
        if start > known:
            return False
        self.tokens.extend(tokens[known - start :])
        return True
