"""Rows of one engine step on their way to the stores, in staging memory.

An area of it: rows of all layers ‖ sums [layers][rows] u32 ‖ keys [rows] u64 ‖ positions [rows]
u32 ‖ tokens [rows] u32 ‖ absent [layers][rows] u8, each from a multiple of 64 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tarragon_hpc.checkpoint.staging import ALIGN
from tarragon_hpc.wire.kv import Run, aligned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from tarragon_hpc.checkpoint.pieces import Piece, Store
    from tarragon_hpc.checkpoint.row_layout import RowLayout
    from tarragon_hpc.checkpoint.staging import Area, Staging

_TABLES = 5
# What the alignment of the tables may cost a batch.
SLACK = (_TABLES + 1) * ALIGN


def bytes_per_row(layout: RowLayout) -> int:
    """Staging memory that a row of all layers takes, without SLACK."""
    return layout.token_bytes + 5 * layout.layers + 16


class Share(NamedTuple):
    """What one store gets of a batch: runs, and the ranges of the batch's rows that they are."""

    runs: list[Run]
    segments: list[tuple[int, int]]

    @property
    def rows(self) -> int:
        """How many rows."""
        return sum(high - low for low, high in self.segments)


class Batch:
    """For the engine thread to fill, and then to `commit` or to `discard`, exactly once.

    count: number of rows R, each of one (request, position), in all layers
    ranges: (key, start, length) of what the rows are, in their order
    keys, positions: [R] uint64 and uint32, whose row each is
    payload: uint8, the rows of all layers, one layer after another, to be written
    gone: [layers * R] uint8, 1 for rows that are not in the cache any more; 0 at first
    """

    def __init__(
        self,
        layout: RowLayout,
        staging: Staging,
        area: Area,
        count: int,
        on_commit: Callable[[Batch], None],
    ) -> None:
        self.count = count
        self.layout = layout
        self.ranges: list[tuple[int, int, int]] = []
        self.shares: dict[Store, Share] = {}
        self.open_shares = 0  # stores that have not got all of it yet; the courier's
        self.sealed = False  # the courier's
        self._area = area
        self._staging = staging
        self._on_commit = on_commit
        layers = layout.layers
        memory = staging.memory[area.start : area.start + area.nbytes]
        at = count * layout.token_bytes
        self.payload: NDArray[np.uint8] = memory[:at]

        def table(nbytes: int) -> NDArray[np.uint8]:
            nonlocal at
            start = aligned(at)
            at = start + nbytes
            return memory[start:at]

        self.sums: NDArray[np.uint32] = table(4 * layers * count).view(np.uint32)
        self.keys: NDArray[np.uint64] = table(8 * count).view(np.uint64)
        self.positions: NDArray[np.uint32] = table(4 * count).view(np.uint32)
        self.tokens: NDArray[np.uint32] = table(4 * count).view(np.uint32)
        self.gone: NDArray[np.uint8] = table(layers * count)
        self.gone.fill(0)

    def __repr__(self) -> str:
        return f"Batch({self.count} rows for {', '.join(map(str, self.shares))})"

    def rows(self, layer: int) -> NDArray[np.uint8]:
        """The rows of a layer, [R, row bytes], C-contiguous; all of them must be written."""
        low, high = self.layout.before[layer], self.layout.before[layer + 1]
        return self.payload[self.count * low : self.count * high].reshape(self.count, high - low)

    def absent(self, layer: int) -> NDArray[np.uint8]:
        """[R]; 1 for rows that are not in the cache any more, whose bytes are then not used."""
        return self.gone[layer * self.count : (layer + 1) * self.count]

    def commit(self, tokens: NDArray[np.uint32]) -> None:
        """Hand it over; it must not be touched any more. tokens: [R], the id at each position."""
        self.tokens[:] = tokens
        self._on_commit(self)

    def discard(self) -> None:
        """Give it up; none of its pieces is copied."""
        self.release()

    def release(self) -> None:
        """Give the memory back."""
        self._staging.release(self._area)


def make_batch(
    pieces: Iterable[Piece],
    layout: RowLayout,
    staging: Staging,
    on_commit: Callable[[Batch], None],
) -> Batch | None:
    """A batch for these pieces, each distinct range of a request once; None: no room.

    Raises ValueError if there is nothing to copy.
    """
    ranges: dict[tuple[int, int, int], list[Piece]] = {}
    for piece in pieces:
        ranges.setdefault((piece.key, piece.start, piece.length), []).append(piece)
    if not ranges:
        raise ValueError("pieces: a batch needs at least one")
    # Rows that the same stores want lie together, so that most stores get one block of memory.
    groups = sorted(ranges.values(), key=lambda group: [piece.store for piece in group])
    count = sum(group[0].length for group in groups)
    area = staging.reserve(count * bytes_per_row(layout) + SLACK)
    if area is None:
        return None
    batch = Batch(layout, staging, area, count, on_commit)
    row = 0
    for group in groups:
        _, key, _, _, start, length = group[0]
        stop = row + length
        batch.ranges.append((key, start, length))
        if length == 1:
            batch.keys[row], batch.positions[row] = key, start
        else:
            batch.keys[row:stop] = key
            batch.positions[row:stop] = np.arange(start, start + length, dtype=np.uint32)
        for piece in group:
            _share_of(batch, piece.store, Run(*piece[1:]), row, stop)
        row = stop
    return batch


def _share_of(batch: Batch, store: Store, run: Run, row: int, stop: int) -> None:
    share = batch.shares.get(store)
    if share is None:
        batch.shares[store] = Share([run], [(row, stop)])
        return
    share.runs.append(run)
    if share.segments[-1][1] == row:
        share.segments[-1] = (share.segments[-1][0], stop)
    else:
        share.segments.append((row, stop))
