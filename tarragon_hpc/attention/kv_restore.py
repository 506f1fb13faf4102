"""Brings KV rows back from a checkpoint store into blocks that vLLM has just allocated.

vLLM parks a sequence whose KV is on its way (an asynchronous load) and steps the others meanwhile.
The rows go from the store's answer straight into the paged cache, in the courier's thread: nobody
else touches these blocks before vLLM has been told that they are filled.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc.attention.kv_state import slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.attention.kv_rows import KvRows
    from tarragon_hpc.attention.kv_state import SequenceKv
    from tarragon_hpc.checkpoint.courier import Courier
    from tarragon_hpc.checkpoint.fetching import FetchResult


class Restorer:
    """block_sizes: tokens per block, by KV-cache group. check: verify every row's checksum.

    Everything but the callbacks is called by the engine thread.
    """

    def __init__(
        self, courier: Courier, rows: KvRows, block_sizes: Sequence[int], *, check: bool
    ) -> None:
        self._courier = courier
        self._check = check
        self._rows = rows
        self._block_sizes = block_sizes
        self._asked: list[tuple[SequenceKv, int, int, Sequence[Sequence[int]]]] = []
        self._loading: dict[str, SequenceKv] = {}
        self._done: queue.SimpleQueue[tuple[str, FetchResult]] = queue.SimpleQueue()
        self.failures = 0
        self.bytes_per_s: float | None = None
        """Of the last load that was large enough to tell; None: none yet."""

    def ask(
        self, kv: SequenceKv, start: int, length: int, block_ids: Sequence[Sequence[int]]
    ) -> None:
        """These positions are to be loaded into these blocks, from the next `begin` on."""
        kv.asked = True
        self._asked.append((kv, start, length, block_ids))

    def begin(self) -> None:
        """Send for what was asked."""
        asked, self._asked = self._asked, []
        for kv, start, length, block_ids in asked:
            self._fetch(kv, start, length, block_ids)

    def take_finished(self) -> tuple[set[str], set[str]]:
        """vLLM's ids of the loads that have ended since the last call, and those that failed."""
        finished: set[str] = set()
        failed: set[str] = set()
        while True:
            try:
                internal, result = self._done.get_nowait()
            except queue.Empty:
                return finished, failed
            finished.add(internal)
            kv = self._loading.pop(internal)
            kv.nbytes += result.nbytes
            if result.ok:
                if result.seconds > 0 and result.nbytes > 1 << 20:
                    self.bytes_per_s = result.nbytes / result.seconds
            else:
                failed.add(internal)
                self.failures += 1
                kv.restored = kv.held = kv.usable = 0
                kv.reason = result.reason

    def _fetch(
        self, kv: SequenceKv, start: int, length: int, block_ids: Sequence[Sequence[int]]
    ) -> None:
        assert kv.found is not None
        internal, store = kv.vllm.request_id, next(iter(kv.found.holders))
        where = slots(block_ids, self._block_sizes, start, length)
        kv.restored = length
        self._loading[internal] = kv

        def sink(first: int, count: int, payload: memoryview, sums: memoryview) -> bool:
            part = slice(first - start, first - start + count)
            bad = self._rows.scatter(
                self._rows.locate([group[part] for group in where]),
                np.frombuffer(payload, np.uint8),
                np.frombuffer(sums, np.uint32),
                np.full(count, kv.key, np.uint64),
                np.arange(first, first + count, dtype=np.uint32),
                check=self._check,
            )
            return bad == 0

        def done(result: FetchResult) -> None:
            self._done.put((internal, result))

        self._courier.fetch(kv.key, kv.attempt, store, start, start + length, sink, done)
