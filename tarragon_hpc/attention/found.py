"""What the checkpoint stores know of a sequence that was begun on another AW."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from tarragon_hpc.wire.to_worker import ToWorker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tarragon_hpc.checkpoint.pieces import Store


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a look for one attempt of a sequence.

    holders: committed positions by store, the best first; none: `reason` says why. tokens: the ids
    at those of the best store, prompt and output.
    """

    request: str
    attempt: int
    holders: Mapping[Store, int]
    tokens: Sequence[int] = field(default=(), repr=False)
    reason: str = ""

    def usable(self, known: Sequence[int]) -> int:
        """How many positions of a sequence with these tokens need not be computed.

        At least the last one is: its row is what the next token is sampled from. Where the store
        has committed tokens that no client has seen, another token may follow now.
        """
        most = min(len(known) - 1, len(self.tokens))
        if list(known[:most]) == list(self.tokens[:most]):
            return most
        pairs = zip(known, self.tokens, strict=False)
        return next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)


Mail: TypeAlias = ToWorker | Found
"""What the main thread is told: by the head, and by the stores' answers."""
