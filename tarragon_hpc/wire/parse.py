"""Bounds-check a dispatch before any number in it is used (DESIGN invariant 8).

Native when it can be, numpy otherwise; both give the same result and refuse the same bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire.dispatch import (
    DTYPE_NAMES,
    DTYPES,
    HEADER_BYTES,
    RequestHeader,
    reply_bytes,
    rows_offset,
    unpack_request_header,
)


class ParsedDispatch(NamedTuple):
    """A dispatch whose numbers are all in range.

    groups:        (expert, first pair, count), ascending by expert; counts add up to header.pairs
    rows_address:  where the rows [header.rows, header.hidden] start, in the slot
    pair_rows:     u32 [header.pairs], the row each pair reads; a copy, since the sender could
                   still write to the slot. Keep it alive while `pair_rows_address` is used
    pair_rows_address: where `pair_rows` lies
    row_bytes:     bytes of one row
    reply_nbytes:  length of an OK reply to it, header included
    """

    header: RequestHeader
    groups: list[tuple[int, int, int]]
    rows_address: int
    pair_rows: bytes
    pair_rows_address: int
    row_bytes: int
    reply_nbytes: int


def address_of(buffer: memoryview | bytes) -> int:
    """The address of a buffer's first byte; the caller keeps the buffer alive."""
    if native.reason is None:
        return native.module.address_of(buffer)
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def parse_tables(
    slot: memoryview, rows: int, pairs: int, groups: int
) -> tuple[list[tuple[int, int, int]], bytes, int]:
    """Twin of the native function: groups, the copied pair rows and their address.

    Raises ValueError if the tables exceed the slot or a number in them is out of range.
    """
    data = np.frombuffer(slot, np.uint8)
    if rows_offset(groups, pairs) > len(data):
        raise ValueError("tables exceed the slot")
    end = HEADER_BYTES + 8 * groups
    table = data[HEADER_BYTES:end].copy().view("<u4").astype(np.int64).reshape(groups, 2)
    index = data[end : end + 4 * pairs].tobytes()
    experts, counts = table[:, 0], table[:, 1]
    if (np.diff(experts) <= 0).any():
        raise ValueError("groups are not in ascending order of experts")
    if (counts < 1).any() or counts.sum() != pairs:
        raise ValueError("the groups' counts do not add up to the pairs")
    if pairs and int(np.frombuffer(index, "<u4").max()) >= rows:
        raise ValueError("a pair reads a row that was not sent")
    first = np.cumsum(counts) - counts
    found = list(zip(experts.tolist(), first.tolist(), counts.tolist(), strict=True))
    return found, index, address_of(index)


_parse_tables = parse_tables if native.reason is not None else native.module.parse_tables


def parse_dispatch(slot: memoryview, reply_capacity: int | None = None) -> ParsedDispatch:
    """Parse a request's bytes; `reply_capacity` is the size of its reply buffer, if to be checked.

    Whether the layer, the experts, the dtype and the hidden size are the receiver's is for the
    receiver to say. Raises FrameError.
    """
    header = unpack_request_header(slot)
    itemsize = DTYPES[DTYPE_NAMES[header.dtype]][1]
    answer = reply_bytes(header.pairs, header.hidden, itemsize)
    if reply_capacity is not None and answer > reply_capacity:
        raise FrameError(f"the reply of {answer} bytes would not fit {reply_capacity}")
    try:
        groups, pair_rows, pair_rows_address = _parse_tables(
            slot, header.rows, header.pairs, header.groups
        )
    except ValueError as error:
        raise FrameError(str(error)) from None
    return ParsedDispatch(
        header,
        groups,
        address_of(slot) + rows_offset(header.groups, header.pairs),
        pair_rows,
        pair_rows_address,
        header.hidden * itemsize,
        answer,
    )
