"""Pause, checkpoint, resume: what checkpointing is compared with (paper §7.4).

Every so many steps the engine stops, the KV of all running sequences is copied as a whole, and the
engine goes on once the store has it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.attention.kv_save import Saver
    from tarragon_hpc.attention.kv_state import Scheduled
    from tarragon_hpc.checkpoint.courier import Courier

_POLL_S = 0.0002
_PATIENCE_S = 10.0
# Positions that are copied at once: a batch must find room in the courier's queue.
_AT_ONCE = 64


class Pauser:
    """saver: copies what it is told, and plans nothing by itself. Engine thread."""

    def __init__(self, courier: Courier, saver: Saver, every: int) -> None:
        self._courier = courier
        courier.be_prompt()
        self._saver = saver
        self._every = every
        self._steps = 0

    def step(self, step: Sequence[Scheduled]) -> None:
        """A step is through."""
        self._steps += 1
        if self._steps % self._every or not self._courier.stores:
            return
        owed = 0
        for scheduled in step:
            for start in range(0, scheduled.end, _AT_ONCE):
                self._copy(scheduled, start, min(_AT_ONCE, scheduled.end - start))
                owed += 1
        deadline = time.monotonic() + _PATIENCE_S
        while owed > 0 and time.monotonic() < deadline:
            owed -= sum(len(answer.runs) for answer in self._courier.answers())
            time.sleep(_POLL_S)

    def _copy(self, scheduled: Scheduled, start: int, length: int) -> None:
        kv = scheduled.kv
        piece = Piece(self._courier.stores[0], kv.key, kv.attempt, 0, start, length)
        while not self._saver.begin([piece], [scheduled]):
            time.sleep(_POLL_S)
        self._saver.finish(counts=True)
