"""Which row goes to which EW: the pure specification of the dispatch (paper §4.2).

Order is part of the contract, because the native packer must produce the same bytes:

- parts: one per EW that gets work, by ascending index of the EW;
- groups of a part: by ascending expert id;
- pairs of a group: by ascending token (and position in the top-k, should an id repeat);
- rows of a part: by ascending token, each token once however many of the EW's experts want it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.ma  # noqa: F401 - np.unique would at its first call, in the middle of a failover

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Part:
    """What one EW gets of one chunk.

    worker:    index of the EW
    experts:   int32 [groups], ascending
    counts:    int32 [groups], pairs of each group, ≥ 1
    pair_rows: uint32 [pairs], the row each pair reads
    tokens:    int64 [rows], the token each row is a copy of
    """

    worker: int
    experts: NDArray[np.int32]
    counts: NDArray[np.int32]
    pair_rows: NDArray[np.uint32]
    tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Assigned:
    """The parts of a chunk, and where the output of each (token, k) will be found.

    where_part, where_pair: int32 [T, k]; the output of token t for its j-th expert is row
    `where_pair[t, j]` of the reply to part `where_part[t, j]`. If `missing` (expert ids without
    an owner) is not empty, there are no parts.
    """

    parts: tuple[Part, ...]
    where_part: NDArray[np.int32]
    where_pair: NDArray[np.int32]
    missing: tuple[int, ...] = ()


def assign(owners: NDArray[np.int32], topk_ids: NDArray[np.int32]) -> Assigned:
    """Split the rows of `topk_ids` [T, k] by `owners` [experts] (`ERT.owners`; -1: nobody).

    Raises ValueError for an id that is not an expert; padding rows must not get here.
    """
    experts = len(owners)
    bad = np.argwhere((topk_ids < 0) | (topk_ids >= experts))
    if len(bad):
        t, j = bad[0]
        raise ValueError(f"topk_ids[{t}, {j}] is {topk_ids[t, j]}; experts are 0 to {experts - 1}")
    where_part = np.zeros(topk_ids.shape, np.int32)
    where_pair = np.zeros(topk_ids.shape, np.int32)
    wanted = np.unique(topk_ids)
    missing = tuple(int(e) for e in wanted if owners[e] < 0)
    if missing:
        return Assigned((), where_part, where_pair, missing)
    owner = owners[topk_ids]
    parts: list[Part] = []
    for worker in np.unique(owner):
        mine = owner == worker
        token, k = np.nonzero(mine)  # row-major: by token, then by position in the top-k
        expert = topk_ids[mine]
        order = np.argsort(expert, kind="stable")
        where_part[mine] = len(parts)
        where_pair[token[order], k[order]] = np.arange(len(order), dtype=np.int32)
        rows, row_of = np.unique(token, return_inverse=True)
        ids, counts = np.unique(expert, return_counts=True)
        parts.append(
            Part(
                int(worker),
                ids.astype(np.int32),
                counts.astype(np.int32),
                row_of[order].astype(np.uint32),
                rows,
            )
        )
    return Assigned(tuple(parts), where_part, where_pair)


def chunks(rows: int, slot_rows: int) -> Iterator[tuple[int, int]]:
    """Cut `rows` tokens into (first, count) pieces that fit a slot whatever their routing is."""
    for first in range(0, rows, slot_rows):
        yield first, min(slot_rows, rows - first)
