"""How a `PlainStore` reads frames: nothing is believed that is beyond their ends."""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_POSITION = 0xFFFFFFFF


class Put(NamedTuple):
    """A Put whose offsets have been checked.

    tokens: by row; None without FLAG_COMMIT
    sums: `rows` for each layer of the frame, one layer after the other
    body: what follows the header; starts: where the rows of each layer of the frame start in it
    """

    header: kv.Header
    runs: list[kv.Run]
    tokens: tuple[int, ...] | None
    sums: tuple[int, ...]
    body: memoryview
    starts: list[int]


def parse_put(header: kv.Header, frame: memoryview, row_bytes: Sequence[int]) -> Put | None:
    """Read a Put for layers with rows of so many bytes; None if it makes no sense.

    The memory of the frame must stay as it is while the result is used.
    """
    n, rows, first, layers = header.runs, header.rows, header.first_layer, header.layers
    commit = header.flags == kv.FLAG_COMMIT
    if header.flags & ~kv.FLAG_COMMIT or not (n and rows and (layers or commit)):
        return None
    if first + layers > len(row_bytes):
        return None
    payload = kv.put_payload(n, rows, layers, commit=commit) - kv.HEADER_BYTES
    lengths = [rows * size for size in row_bytes[first : first + layers]]
    if payload + sum(lengths) > header.body:
        return None
    runs = kv.unpack_runs(frame, header)
    if not all(run.length and in_range(run) for run in runs):
        return None
    if sum(run.length for run in runs) != rows:
        return None
    body = frame[kv.HEADER_BYTES : kv.HEADER_BYTES + header.body]
    table = kv.RUN_BYTES * n
    tokens = struct.unpack_from(f"<{rows}I", body, table) if commit else None
    sums = struct.unpack_from(f"<{rows * layers}I", body, table + 4 * rows * commit)
    return Put(header, runs, tokens, sums, body, list(accumulate(lengths, initial=payload)))


def in_range(run: kv.Run) -> bool:
    """Whether all positions of a run are numbers that a frame can hold."""
    return run.start + run.length <= _MAX_POSITION


def rows_that_fit(rows: int, room: int, row_bytes: Sequence[int]) -> int:
    """How many of so many rows of all layers, with their sums, fit into `room` bytes."""
    return min(rows, kv.rows_that_fit(kv.HEADER_BYTES + room, len(row_bytes), sum(row_bytes)))
