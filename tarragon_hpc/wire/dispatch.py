"""Layout of a dispatch (AW → EW) and of its reply in a channel's slot.

All integers little endian. Offsets are in bytes from the start of the slot; `kernels/dispatch.hpp`
is the same table for native code, and a test holds the two together.

Request:  header (64) ‖ groups G × (expert u32, count u32) ‖ pair rows P × u32 ‖ pad to 64 ‖
          rows R × H × itemsize
Reply:    header (64) ‖ P × H × itemsize

A *row* is one token's hidden state; it travels once per EW even if several of the EW's experts
want it. A *pair* is one (row, expert): pairs are sorted by group, and the pair-rows table says
which row each pair reads. The reply holds one output row per pair, in pair order, unweighted: the
AW multiplies by the router weights and sums in top-k order, so that placement cannot change
arithmetic (invariant 2).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tarragon_hpc.errors import FrameError

ALIGN = 64
HEADER_BYTES = 64
REQUEST_MAGIC = 0x51475254  # "TRGQ"
REPLY_MAGIC = 0x41475254  # "TRGA"

FLAG_REPLAY = 1

STATUS_OK = 0
STATUS_UNKNOWN_EXPERT = 1
STATUS_BAD_REQUEST = 2
STATUS_STALE = 3
STATUS_FAILED = 4

DTYPES = {"float32": (0, 4), "bfloat16": (1, 2), "float16": (2, 2)}
DTYPE_NAMES = {code: name for name, (code, _) in DTYPES.items()}
_ITEMSIZES = dict(DTYPES.values())

_REQUEST = struct.Struct("<IHHIIQIIIII20x")
_REPLY = struct.Struct("<IHHIIQIIIIQ16x")


class RequestHeader(NamedTuple):
    """Header of a dispatch.

    sequence: grows by one with every dispatch message of the AW's incarnation.
    """

    dtype: int
    flags: int
    incarnation: int
    epoch: int
    sequence: int
    layer: int
    rows: int
    pairs: int
    groups: int
    hidden: int


class ReplyHeader(NamedTuple):
    """Header of a reply; `incarnation` is the EW's, `compute_ns` the time the batch took."""

    dtype: int
    status: int
    incarnation: int
    epoch: int
    sequence: int
    layer: int
    rows: int
    pairs: int
    hidden: int
    compute_ns: int


def rows_offset(groups: int, pairs: int) -> int:
    """Where the rows of a request start."""
    end = HEADER_BYTES + 8 * groups + 4 * pairs
    return (end + ALIGN - 1) // ALIGN * ALIGN


def request_bytes(rows: int, pairs: int, groups: int, hidden: int, itemsize: int) -> int:
    """Bytes of a request."""
    return rows_offset(groups, pairs) + rows * hidden * itemsize


def reply_bytes(pairs: int, hidden: int, itemsize: int) -> int:
    """Bytes of a reply."""
    return HEADER_BYTES + pairs * hidden * itemsize


def pack_request_header(header: RequestHeader) -> bytes:
    """The 64 bytes of a request's header."""
    return _REQUEST.pack(REQUEST_MAGIC, *header)


def unpack_request_header(data: memoryview | bytes) -> RequestHeader:
    """Parse and bounds-check a request's header against the slot's length. Raises FrameError."""
    if len(data) < HEADER_BYTES:
        raise FrameError("dispatch shorter than its header")
    fields = _REQUEST.unpack_from(data)
    header = RequestHeader._make(fields[1:])
    itemsize = _ITEMSIZES.get(header.dtype)
    if fields[0] != REQUEST_MAGIC or itemsize is None:
        raise FrameError("not a dispatch")
    size = request_bytes(header.rows, header.pairs, header.groups, header.hidden, itemsize)
    if size > len(data):
        raise FrameError(f"dispatch exceeds its slot of {len(data)} bytes")
    return header


def pack_reply_header(header: ReplyHeader) -> bytes:
    """The 64 bytes of a reply's header."""
    return _REPLY.pack(REPLY_MAGIC, *header)


def unpack_reply_header(data: memoryview | bytes) -> ReplyHeader:
    """Parse and bounds-check a reply's header. Raises FrameError."""
    if len(data) < HEADER_BYTES:
        raise FrameError("reply shorter than its header")
    fields = _REPLY.unpack_from(data)
    header = ReplyHeader._make(fields[1:])
    itemsize = _ITEMSIZES.get(header.dtype)
    if fields[0] != REPLY_MAGIC or itemsize is None:
        raise FrameError("not a reply")
    size = HEADER_BYTES + header.pairs * header.hidden * itemsize
    if header.status == STATUS_OK and size > len(data):
        raise FrameError(f"reply of {header.pairs} pairs in {len(data)} bytes")
    return header


def slot_geometry(
    slot_rows: int, top_k: int, experts: int, hidden: int, itemsize: int
) -> tuple[int, int]:
    """(request bytes, reply bytes) of a slot that takes any dispatch of `slot_rows` rows."""
    pairs = slot_rows * top_k
    return (
        request_bytes(slot_rows, pairs, min(experts, pairs), hidden, itemsize),
        reply_bytes(pairs, hidden, itemsize),
    )
