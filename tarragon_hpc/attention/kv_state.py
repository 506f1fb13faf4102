"""What the engine knows of a sequence's KV: who owns it, what came from a store, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tarragon_hpc.attention.found import Found


@dataclass(slots=True)
class SequenceKv:
    """One sequence. `vllm` is vLLM's Request.

    found: what a store keeps of it, if it was begun elsewhere; held: so many positions of that are
    right for this sequence; usable: so many are to be restored. asked: the load was handed out,
    which is done once. opened: its rows are being copied. moved: another AW goes on, so the stores
    must not forget it. restored: positions that came from a store; reason: why none did.
    """

    request: str
    key: int
    attempt: int
    vllm: Any
    found: Found | None = None
    held: int = 0
    usable: int = 0
    asked: bool = False
    opened: bool = False
    moved: bool = False
    restored: int = 0
    nbytes: int = 0
    reason: str = ""


class Scheduled(NamedTuple):
    """A sequence in an engine step: its positions in the cache once the step is through, and its
    block table in each KV-cache group.
    """

    kv: SequenceKv
    end: int
    blocks: Sequence[Sequence[int]]


def slots(
    block_ids: Sequence[Sequence[int]], block_sizes: Sequence[int], start: int, length: int
) -> list[NDArray[np.int64]]:
    """For each KV-cache group, where the rows of positions start … start+length-1 lie.

    A slot is block * block size + offset. block_ids: a request's block table per group.
    """
    if length == 1:
        return [
            np.array([ids[start // size] * size + start % size], np.int64)
            for ids, size in zip(block_ids, block_sizes, strict=True)
        ]
    positions = np.arange(start, start + length)
    found = []
    for ids, size in zip(block_ids, block_sizes, strict=True):
        first, last = start // size, (start + length - 1) // size
        table = np.array(ids[first : last + 1], np.int64)
        found.append(table[positions // size - first] * size + positions % size)
    return found
