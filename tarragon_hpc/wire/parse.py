"""Bounds-check a dispatch before any number in it is used (DESIGN invariant 8).

Native when it can be, numpy otherwise; both give the same result and refuse the same bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire.dispatch import (
    DTYPE_NAMES,
    DTYPES,
    HEADER_BYTES,
    RequestHeader,
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


def address_of(buffer: Any, writable: bool = False) -> int:
    """The address of the first byte of a buffer (bytes, memoryview, array), which the caller keeps.

    Raises ValueError or BufferError if it is not C-contiguous, or read-only when to be written.
    """
    if native.reason is None:
        return native.module.address_of(buffer, writable)
    view = memoryview(buffer)
    if not view.c_contiguous or (writable and view.readonly):
        raise ValueError("the buffer is not C-contiguous, or is read-only")
    return int(np.asarray(view).ctypes.data)


def parse_twin(slot: memoryview, reply_capacity: int) -> tuple[Any, ...]:
    """Twin of the native function: the fields of a ParsedDispatch. Raises ValueError."""
    data = np.frombuffer(slot, np.uint8)
    try:
        header = unpack_request_header(slot)
    except FrameError as error:
        raise ValueError(str(error)) from None
    row_bytes = header.hidden * DTYPES[DTYPE_NAMES[header.dtype]][1]
    answer = HEADER_BYTES + header.pairs * row_bytes
    if answer > reply_capacity:
        raise ValueError(f"its reply would exceed a slot of {reply_capacity} bytes")
    # Copied first and checked then: the sender could still write to the slot.
    end = HEADER_BYTES + 8 * header.groups
    table = data[HEADER_BYTES:end].copy().view("<u4").astype(np.int64).reshape(-1, 2)
    pair_rows = data[end : end + 4 * header.pairs].tobytes()
    experts, counts = table[:, 0], table[:, 1]
    if (np.diff(experts) <= 0).any():
        raise ValueError("groups are not in ascending order of experts")
    if (counts < 1).any() or counts.sum() != header.pairs:
        raise ValueError("the groups' counts do not add up to the pairs")
    if header.pairs and int(np.frombuffer(pair_rows, "<u4").max()) >= header.rows:
        raise ValueError("a pair reads a row that was not sent")
    first = np.cumsum(counts) - counts
    groups = list(zip(experts.tolist(), first.tolist(), counts.tolist(), strict=True))
    rows_address = address_of(slot) + rows_offset(header.groups, header.pairs)
    return header, groups, rows_address, pair_rows, address_of(pair_rows), row_bytes, answer


_parse = parse_twin if native.reason is not None else native.module.parse_dispatch
_tuple = tuple.__new__  # a named tuple's own constructor costs a microsecond that counts here


def parse_dispatch(slot: memoryview, reply_capacity: int = 1 << 62) -> ParsedDispatch:
    """Parse a request's bytes; `reply_capacity`: size of its reply buffer.

    Whether the layer, the experts, the dtype and the hidden size are the receiver's is for the
    receiver to say. Raises FrameError.
    """
    try:
        header, *rest = _parse(slot, reply_capacity)
    except ValueError as error:
        raise FrameError(str(error)) from None
    return _tuple(ParsedDispatch, (_tuple(RequestHeader, header), *rest))
