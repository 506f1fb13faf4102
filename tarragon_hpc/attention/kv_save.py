"""Copies what an engine step adds to the KV cache, for the checkpoint stores. Engine thread.

The rows of a layer are copied once its attention has been computed, while the experts' answers are
awaited; the batch is handed to the courier when the step is through and only if the step counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.attention.kv_state import slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.attention.kv_rows import KvRows
    from tarragon_hpc.attention.kv_state import Scheduled
    from tarragon_hpc.checkpoint.batch import Batch
    from tarragon_hpc.checkpoint.courier import Courier
    from tarragon_hpc.checkpoint.pieces import Piece
    from tarragon_hpc.checkpoint.protection import Protection


class Saver:
    """block_sizes: tokens per block, by KV-cache group."""

    def __init__(
        self, courier: Courier, protection: Protection, rows: KvRows, block_sizes: Sequence[int]
    ) -> None:
        self._courier = courier
        self._protection = protection
        self._rows = rows
        self._block_sizes = block_sizes
        self._batch: Batch | None = None
        self._pieces: list[Piece] = []
        self._located: Any = None
        self._scheduled: dict[int, Scheduled] = {}
        self._done = self._copied = 0

    def plan(self, step: Sequence[Scheduled], now: float) -> None:
        """Decide what to copy in the coming step."""
        room = self._courier.room()
        pieces = self._protection.plan([(kv.key, end) for kv, end, _ in step], now, room)
        if pieces and not self.begin(pieces, step):
            self._protection.skipped(pieces)

    def begin(self, pieces: list[Piece], step: Sequence[Scheduled]) -> bool:
        """Copy these pieces of the step's sequences until `finish`; False: there is no room now."""
        batch = self._courier.begin(pieces)
        if batch is None:
            return False
        self._scheduled = {scheduled.kv.key: scheduled for scheduled in step}
        runs = [
            slots(self._scheduled[key].blocks, self._block_sizes, start, length)
            for key, start, length in batch.ranges
        ]
        self._located = self._rows.locate([np.concatenate(g) for g in zip(*runs, strict=True)])
        self._batch, self._pieces = batch, pieces
        self._done = self._copied = 0
        return True

    def layer_computed(self) -> None:
        """The attention of one more layer has been computed, in the layers' order."""
        self._done += 1

    def copy(self) -> None:
        """Copy the layers that have been computed and not been copied yet."""
        if self._batch is not None and self._copied < self._done:
            self._gather(self._batch, self._copied, self._done)
            self._copied = self._done

    def finish(self, *, counts: bool) -> None:
        """The step is through. `counts`: its rows are what they should be."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if not counts:
            batch.discard()
            self._protection.skipped(self._pieces)
            return
        layers = batch.layout.layers
        if self._copied < layers:
            self._gather(batch, self._copied, layers)
        self._rows.finish()
        tokens = np.empty(batch.count, np.uint32)
        at = 0
        for key, start, length in batch.ranges:
            ids = self._scheduled[key].kv.vllm.all_token_ids
            tokens[at : at + length] = ids[start : start + length]
            at += length
        batch.commit(tokens)

    def _gather(self, batch: Batch, first: int, stop: int) -> None:
        before, count = batch.layout.before, batch.count
        out = batch.payload[count * before[first] : count * before[stop]]
        absent = batch.gone[count * first : count * stop]
        self._rows.gather(self._located, first, stop - first, out, absent)
