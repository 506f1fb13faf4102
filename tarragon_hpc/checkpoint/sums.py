"""Checksums of KV rows (wire/kv.py): CRC-32C (Castagnoli; RFC 3720 B.4). Twin: kernels/crc32c.hpp.

What is here in Python is the specification, and for tests; services have the native one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.wire.kv import SUM_ABSENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_LOWEST = 2  # smaller ones have a meaning of their own
_PLACE = struct.Struct("<QII")


def _make_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _make_table()
_ENTRIES = _TABLE.tolist()


def crc32c(before: int, data: bytes | memoryview) -> int:
    """The sum of `data` after what has the sum `before` (0: nothing)."""
    state = before ^ 0xFFFFFFFF
    for byte in data:
        state = (state >> 8) ^ _ENTRIES[(state ^ byte) & 0xFF]
    return int(state ^ 0xFFFFFFFF)


def row_sum(key: int, layer: int, position: int, row: bytes | memoryview) -> int:
    """The checksum of a row; `row` as bytes."""
    total = crc32c(crc32c(0, _PLACE.pack(key, layer, position)), row)
    return max(total, _LOWEST)


def seal(
    payload: NDArray[np.uint8],
    rows: int,
    row_bytes: Sequence[int],
    keys: NDArray[np.uint64],
    positions: NDArray[np.uint32],
    sums: NDArray[np.uint32],
    absent: NDArray[np.uint8],
) -> None:
    """Write the checksums of rows of all layers.

    payload: [layer][row][row_bytes[layer]]; keys, positions: [rows]; sums, absent: [layers * rows],
    C-contiguous; a row that is absent gets SUM_ABSENT. The GIL is released if the code is native.
    """
    if hasattr(native.module, "kv_seal"):
        native.module.kv_seal(
            payload, len(row_bytes), rows, 0, row_bytes, keys, positions, sums, absent
        )
    else:
        plain_seal(payload, rows, row_bytes, keys, positions, sums, absent)


def plain_seal(
    payload: NDArray[np.uint8],
    rows: int,
    row_bytes: Sequence[int],
    keys: NDArray[np.uint64],
    positions: NDArray[np.uint32],
    sums: NDArray[np.uint32],
    absent: NDArray[np.uint8],
) -> None:
    """`seal` in numpy: byte by byte, all rows of a layer at once."""
    place = np.zeros(rows, np.dtype([("key", "<u8"), ("layer", "<u4"), ("position", "<u4")]))
    place["key"], place["position"] = keys, positions
    offset = 0
    for layer, size in enumerate(row_bytes):
        place["layer"] = layer
        block = payload[offset : offset + rows * size].reshape(rows, size)
        offset += rows * size
        state = np.full(rows, 0xFFFFFFFF, np.uint32)
        for column in np.hstack((place.view(np.uint8).reshape(rows, 16), block)).T:
            state = (state >> 8) ^ _TABLE[(state ^ column) & 0xFF]
        mine = slice(layer * rows, (layer + 1) * rows)
        sums[mine] = np.where(absent[mine], SUM_ABSENT, np.maximum(~state, _LOWEST))
