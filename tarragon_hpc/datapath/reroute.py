"""Sending again what an EW did not answer: which rows, to whom, and where their outputs go. Pure.

A part (assign.py) is what one EW owes a chunk: groups of pairs, one group per expert. When the EW
fails, each group goes to the next EW that holds its expert; a *piece* is a set of groups of one
part that travel together. Inside a group nothing changes, so the outputs of the pieces, put at
their places, are bit for bit the reply that the part would have had (invariant 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc.datapath.assign import Part
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Groups of a part.

    chunk, part: which part of which chunk; whole: that part
    groups: indices of its groups, ascending
    blame:  the EW whose failure made it necessary; empty: nobody served these experts
    refused: what that EW said, if it answered at all
    refusers: all EWs that have refused it
    """

    chunk: int
    part: int
    whole: Part
    groups: tuple[int, ...]
    blame: str
    refused: str = ""
    refusers: frozenset[str] = frozenset()

    @property
    def experts(self) -> tuple[int, ...]:
        """The experts wanted, ascending."""
        return tuple(int(self.whole.experts[g]) for g in self.groups)

    @property
    def pairs(self) -> int:
        """Output rows."""
        return int(self.whole.counts[list(self.groups)].sum())


def all_of(chunk: int, part: int, whole: Part, blame: str) -> Piece:
    """A whole part as one piece."""
    return Piece(chunk, part, whole, tuple(range(len(whole.experts))), blame)


def split(piece: Piece, owners: NDArray[np.int32]) -> Mapping[int, Piece]:
    """The piece by the owner of its experts; `owners` as for `assign`."""
    by_owner: dict[int, list[int]] = {}
    for group in piece.groups:
        by_owner.setdefault(int(owners[piece.whole.experts[group]]), []).append(group)
    return {owner: replace(piece, groups=tuple(g)) for owner, g in by_owner.items()}


def without(piece: Piece, groups: set[int]) -> Piece | None:
    """The piece without some groups; None if nothing is left."""
    rest = tuple(g for g in piece.groups if g not in groups)
    return replace(piece, groups=rest) if rest else None


def as_part(piece: Piece, worker: int) -> Part:
    """What the EW with this index is sent: a part of its own, in the order `assign` demands."""
    pairs = np.concatenate([_pairs(piece.whole, g) for g in piece.groups])
    rows, pair_rows = np.unique(piece.whole.pair_rows[pairs], return_inverse=True)
    chosen = list(piece.groups)
    return Part(
        worker,
        piece.whole.experts[chosen],
        piece.whole.counts[chosen],
        pair_rows.astype(np.uint32),
        piece.whole.tokens[rows],
    )


def place(piece: Piece, reply: memoryview, into: memoryview, row_bytes: int) -> None:
    """Copy the outputs of a piece from its reply to their places in the reply of the whole part."""
    at = wire.HEADER_BYTES
    for group in piece.groups:
        pairs = _pairs(piece.whole, group)
        size = len(pairs) * row_bytes
        to = wire.HEADER_BYTES + int(pairs[0]) * row_bytes
        into[to : to + size] = reply[at : at + size]
        at += size


def _pairs(whole: Part, group: int) -> NDArray[np.int64]:
    """Indices of a group's pairs in its part."""
    first = int(whole.counts[:group].sum())
    return np.arange(first, first + int(whole.counts[group]))
