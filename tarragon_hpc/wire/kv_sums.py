"""Sums of KV rows (`wire/kv.py` says what a sum is): made at the AW, checked wherever one is used.

Native when it can be, numpy otherwise; both give the same sums. All arrays are C-contiguous.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.wire.kv import SUM_ABSENT, SUM_NONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Words = NDArray[np.uint32]
    Keys = NDArray[np.uint64]

_POLYNOMIAL = 0x82F63B78


def _make_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _make_table()
_ENTRIES: list[int] = _TABLE.tolist()


def crc32c(data: Bytes) -> Words:
    """The CRC-32C (RFC 3720 B.4) of each row of [N, bytes]."""
    state = np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        state = (state >> 8) ^ _TABLE[(state ^ column) & 0xFF]
    return ~state


def sums_of(keys: Keys, layer: int, positions: Words, rows: Bytes) -> Words:
    """The sums of one layer's rows, [N]. keys: [N]; positions: [N]; rows: [N, bytes]."""
    place = np.zeros(len(rows), np.dtype([("key", "<u8"), ("layer", "<u4"), ("position", "<u4")]))
    place["key"], place["layer"], place["position"] = keys, layer, positions
    sums = crc32c(np.concatenate([place.view(np.uint8).reshape(-1, 16), rows], axis=1))
    return np.maximum(sums, 2)


def row_sum(key: int, layer: int, position: int, row: bytes | memoryview) -> int:
    """The sum of one row, for where there is one at a time."""
    state = 0xFFFFFFFF
    for byte in struct.pack("<QII", key, layer, position) + bytes(row):
        state = state >> 8 ^ _ENTRIES[(state ^ byte) & 0xFF]
    return max(2, state ^ 0xFFFFFFFF)


def seal(
    payload: Bytes,
    first_layer: int,
    row_bytes: Sequence[int],
    keys: Keys,
    positions: Words,
    absent: Bytes | None,
    sums: Words,
    *,
    check: bool,
) -> None:
    """Write the sums of a Put's rows.

    payload: the rows, layer by layer, R of `row_bytes[i]` for layer `first_layer + i`.
    keys, positions: [R], of the rows' requests. absent: [L, R], not 0 where there is no such row
    any more; None: all are there. sums: [L, R], written. check: False makes none (SUM_NONE).
    Raises ValueError if the lengths do not fit each other.
    """
    if native.reason is None:
        native.module.kv_seal(
            payload, len(row_bytes), len(keys), first_layer, row_bytes, keys, positions, absent,
            sums, check,
        )  # fmt: skip
    else:
        seal_twin(payload, first_layer, row_bytes, keys, positions, absent, sums, check=check)


def seal_twin(
    payload: Bytes,
    first_layer: int,
    row_bytes: Sequence[int],
    keys: Keys,
    positions: Words,
    absent: Bytes | None,
    sums: Words,
    *,
    check: bool,
) -> None:
    """See `seal`; the specification of `_native.kv_seal`."""
    rows, layers = len(keys), len(row_bytes)
    _expect("payload", payload.size, rows * sum(row_bytes))
    _expect("positions", positions.size, rows)
    _expect("sums", sums.size, rows * layers)
    table = sums.reshape(layers, rows)
    at = 0
    for i, size in enumerate(row_bytes):
        of_layer = payload.reshape(-1)[at : at + rows * size].reshape(rows, size)
        table[i] = sums_of(keys, first_layer + i, positions, of_layer) if check else SUM_NONE
        at += rows * size
    if absent is not None:
        _expect("absent", absent.size, rows * layers)
        table[absent.reshape(layers, rows) != 0] = SUM_ABSENT


def bad_rows(
    payload: Bytes,
    row_bytes: Sequence[int],
    keys: Keys,
    positions: Words,
    sums: Words,
    *,
    check: bool,
) -> Bytes:
    """Which rows of the answer to a Fetch are not what was sealed: 1 or 0, [R, layers].

    payload: token by token, the rows of all layers (from layer 0). sums: [R, layers]. A sum is
    compared wherever there is one; SUM_NONE is bad if `check`, SUM_ABSENT never (but such a row
    must not be used). Raises ValueError if the lengths do not fit each other.
    """
    if native.reason is not None:
        return bad_rows_twin(payload, row_bytes, keys, positions, sums, check=check)
    bad = np.empty((len(keys), len(row_bytes)), np.uint8)
    native.module.kv_check(payload, row_bytes, keys, positions, sums, bad, check)
    return bad


def bad_rows_twin(
    payload: Bytes,
    row_bytes: Sequence[int],
    keys: Keys,
    positions: Words,
    sums: Words,
    *,
    check: bool,
) -> Bytes:
    """See `bad_rows`; the specification of `_native.kv_check`."""
    rows, layers = len(keys), len(row_bytes)
    _expect("payload", payload.size, rows * sum(row_bytes))
    _expect("positions", positions.size, rows)
    _expect("sums", sums.size, rows * layers)
    table = payload.reshape(rows, sum(row_bytes))
    given = sums.reshape(rows, layers)
    bad = np.empty((rows, layers), np.uint8)
    at = 0
    for i, size in enumerate(row_bytes):
        made = sums_of(keys, i, positions, table[:, at : at + size])
        wrong = (given[:, i] != made) & (given[:, i] != SUM_ABSENT)
        bad[:, i] = np.where(given[:, i] == SUM_NONE, check, wrong)
        at += size
    return bad


def _expect(what: str, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(f"{what}: {size} numbers instead of {expected}")
