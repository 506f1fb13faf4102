"""How a batch of rows is cut into frames that fit a slot. Pure.

Everything in one frame if it fits. Else first by layers, and by rows as well if not even one layer
fits; then the commit comes in a frame of its own, without rows, so that it is the last thing that
the store sees of the batch.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.wire.kv import Run, put_payload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.checkpoint.row_layout import RowLayout


class Frame(NamedTuple):
    """Rows start … stop-1 of what a store gets of a batch, in some layers.

    commit: these rows are whole with it, and it brings their tokens
    """

    first_layer: int
    layers: int
    start: int
    stop: int
    commit: bool


def frame_bytes(runs: int, frame: Frame, layout: RowLayout) -> int:
    """Bytes of a frame."""
    rows = frame.stop - frame.start
    tables = put_payload(runs, rows, frame.layers, commit=frame.commit)
    above = frame.first_layer + frame.layers
    return tables + rows * (layout.before[above] - layout.before[frame.first_layer])


def cut(rows: int, runs: int, layout: RowLayout, capacity: int) -> list[Frame]:
    """The frames of `rows` rows in `runs` runs, of at most `capacity` bytes, in order.

    Raises ValueError if not even one row of one layer fits.
    """
    whole = Frame(0, layout.layers, 0, rows, commit=True)
    if frame_bytes(runs, whole, layout) <= capacity:
        return [whole]

    def bytes_of(count: int, first: int, layers: int, *, commit: bool) -> int:
        frame = Frame(first, layers, 0, count, commit)
        return frame_bytes(min(count, runs), frame, layout)

    widest = layout.row_bytes.index(max(layout.row_bytes))
    counts = range(1, rows + 1)
    at_once = bisect_right(counts, capacity, key=lambda n: bytes_of(n, widest, 1, commit=False))
    commits = bisect_right(counts, capacity, key=lambda n: bytes_of(n, 0, 0, commit=True))
    if not at_once or not commits:
        raise ValueError(f"a row of {max(layout.row_bytes)} bytes does not fit {capacity} bytes")
    frames: list[Frame] = []
    for start in range(0, rows, at_once):
        stop = min(rows, start + at_once)
        first = 0
        while first < layout.layers:
            layers = 1
            while (
                first + layers < layout.layers
                and bytes_of(stop - start, first, layers + 1, commit=False) <= capacity
            ):
                layers += 1
            frames.append(Frame(first, layers, start, stop, commit=False))
            first += layers
    for start in range(0, rows, commits):
        frames.append(Frame(0, 0, start, min(rows, start + commits), commit=True))
    return frames


def clip_runs(runs: Sequence[Run], start: int, stop: int) -> list[Run]:
    """The parts of the runs that cover rows start … stop-1 of them."""
    clipped = []
    row = 0
    for run in runs:
        first, last = max(start, row), min(stop, row + run.length)
        if first < last:
            clipped.append(run._replace(start=run.start + first - row, length=last - first))
        row += run.length
    return clipped


def clip_segments(
    segments: Sequence[tuple[int, int]], start: int, stop: int
) -> list[tuple[int, int]]:
    """Of ranges of rows, laid one after another, what covers rows start … stop-1 of them."""
    clipped = []
    row = 0
    for low, high in segments:
        first, last = max(start, row), min(stop, row + high - low)
        if first < last:
            clipped.append((low + first - row, low + last - row))
        row += high - low
    return clipped
