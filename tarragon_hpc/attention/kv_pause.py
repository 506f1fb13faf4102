"""Pause, checkpoint, resume: what checkpointing is compared with (paper §7.4).

Every so many steps the engine stops, the KV of all running sequences is copied as a whole, and the
engine goes on once the store has it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc.attention.kv_state import slots
from tarragon_hpc.checkpoint.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.attention.kv_rows import KvRows
    from tarragon_hpc.attention.kv_state import SequenceKv
    from tarragon_hpc.checkpoint.courier import Courier

_POLL_S = 0.0002
_PATIENCE_S = 10.0
# Positions that are copied at once: a batch must find room in the courier's queue.
_AT_ONCE = 64


class Pauser:
    """block_sizes: tokens per block, by KV-cache group. Engine thread."""

    def __init__(
        self, courier: Courier, rows: KvRows, block_sizes: Sequence[int], every: int
    ) -> None:
        self._courier = courier
        courier.be_prompt()
        self._rows = rows
        self._block_sizes = block_sizes
        self._every = every
        self._steps = 0

    def step(self, step: Sequence[tuple[SequenceKv, int, Sequence[Sequence[int]]]]) -> None:
        """A step is through.

        step: (sequence, its positions in the cache, its block tables)
        """
        self._steps += 1
        if self._steps % self._every or not self._courier.stores:
            return
        owed = 0
        for kv, end, blocks in step:
            for start in range(0, end, _AT_ONCE):
                self._copy(kv, start, min(_AT_ONCE, end - start), blocks)
                owed += 1
        deadline = time.monotonic() + _PATIENCE_S
        while owed > 0 and time.monotonic() < deadline:
            owed -= sum(len(answer.runs) for answer in self._courier.answers())
            time.sleep(_POLL_S)

    def _copy(
        self, kv: SequenceKv, start: int, length: int, blocks: Sequence[Sequence[int]]
    ) -> None:
        piece = Piece(self._courier.stores[0], kv.key, kv.attempt, 0, start, length)
        while (batch := self._courier.begin([piece])) is None:
            time.sleep(_POLL_S)
        located = self._rows.locate(slots(blocks, self._block_sizes, start, length))
        self._rows.gather(located, 0, batch.layout.layers, batch.payload, batch.gone)
        self._rows.finish()
        ids = kv.vllm.all_token_ids[start : start + length]
        batch.commit(np.array(ids, np.uint32))
