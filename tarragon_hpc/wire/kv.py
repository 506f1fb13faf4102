"""Layout of what an AW and a checkpoint store (CS) tell each other in a channel's slots.

All integers little endian, offsets in bytes from the start of the slot; `kernels/kv_wire.hpp` is
the same table for native code, and a test holds the two together.

A *row* is the KV segment of one token in one layer (paper §6.1); its length depends on the layer
only. A *run* is a range of a request's positions: rows `start … start+length-1`. Runs of one frame
follow each other, so that its row r belongs to the run that covers r.

Put (AW → CS), some layers of some rows:

    header (48) ‖ runs N × (key u64, attempt u32, base u32, start u32, length u32)
    ‖ [tokens R × u32, if FLAG_COMMIT] ‖ sums L × R × u32 ‖ pad to 64 ‖ per layer: R × row bytes

Free, Look and Fetch: header ‖ runs (Look and Fetch: exactly one). Answers:

    header (48) ‖ Put: dropped keys B × u64 ‖ Look: tokens A × u32
                ‖ Fetch: sums A × layers × u32 ‖ pad to 64 ‖ A × (rows of all layers)

Hello, the first frame of a channel: header ‖ bytes of a row of each layer, `layers` × u32. A store
takes them from the first client that says it, and refuses all frames of one that says another.

*key* names a request in the whole run (`request_key`). *attempt* is the epoch of its owner: the
gateway raises it with every AW that it gives the request to, and the store drops whatever comes
from an older one. *base* is the position from which this attempt writes; what older attempts wrote
from there on is forgotten with its first frame. FLAG_COMMIT marks the last frame of an engine
step: with it the step's rows are whole, and it brings their token ids. Nothing else is needed to go
on: the state of a sampler follows from the seed and the number of tokens.

*sum* is the CRC-32C of (key u64, layer u32, position u32) and the row, so that a row in the wrong
place is as wrong as a flipped bit. It is made where the row was read and checked where it is used.
SUM_ABSENT: the AW had no such row any more (out of a sliding window), its bytes are zero and must
not be used; SUM_NONE: checksums are switched off. A real sum of 0 or 1 is written as 2.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from tarragon_hpc.errors import FrameError

MAGIC = 0x564B5254  # "TRKV"
HEADER_BYTES = 48
RUN_BYTES = 24
ALIGN = 64

PUT, FREE, LOOK, FETCH, HELLO = 1, 2, 3, 4, 5
FLAG_COMMIT = 1

STATUS_OK = 0
STATUS_UNKNOWN = 1  # the store knows nothing of the request
STATUS_STALE = 2  # a newer attempt owns it
STATUS_SHORT = 3  # not so much is committed
STATUS_BAD = 4  # the frame makes no sense

SUM_ABSENT = 0
SUM_NONE = 1

_HEADER = struct.Struct("<IBBHQIIHHIQ8x")
_RUN = struct.Struct("<QIIII")


class Header(NamedTuple):
    """kind, flags, status (answers), sequence: grows by one with every frame of a channel.

    runs, rows: of the frame; answers: B and A of the module's text. first_layer, layers: which
    layers a Put holds. body: bytes after the header.
    """

    kind: int
    flags: int
    status: int
    sequence: int
    runs: int
    rows: int
    first_layer: int
    layers: int
    body: int


class Run(NamedTuple):
    """A range of positions of one request, as one attempt wrote it."""

    key: int
    attempt: int
    base: int
    start: int
    length: int


def request_key(request: str) -> int:
    """The 64-bit name of a request on the data plane."""
    return int.from_bytes(hashlib.blake2b(request.encode(), digest_size=8).digest(), "little")


def aligned(offset: int) -> int:
    """The next multiple of ALIGN."""
    return (offset + ALIGN - 1) // ALIGN * ALIGN


def put_payload(runs: int, rows: int, layers: int, *, commit: bool) -> int:
    """Where the rows of a Put start."""
    return aligned(HEADER_BYTES + RUN_BYTES * runs + 4 * rows * (layers + commit))


def fetch_payload(rows: int, layers: int) -> int:
    """Where the rows of the answer to a Fetch start."""
    return aligned(HEADER_BYTES + 4 * rows * layers)


def fetched_bytes(rows: int, layers: int, token_bytes: int) -> int:
    """Bytes of the answer to a Fetch; token_bytes: one token's rows of all layers."""
    return fetch_payload(rows, layers) + rows * token_bytes


def rows_that_fit(reply_bytes: int, layers: int, token_bytes: int) -> int:
    """How many tokens' rows of all layers, with their sums, a reply has room for."""
    rows = max(0, reply_bytes - HEADER_BYTES) // (4 * layers + token_bytes)
    while rows and fetched_bytes(rows, layers, token_bytes) > reply_bytes:
        rows -= 1
    return rows


def pack_header(header: Header) -> bytes:
    """The 48 bytes of a header."""
    h = header
    return _HEADER.pack(
        MAGIC, h.kind, h.flags, h.status, h.sequence, h.runs, h.rows, h.first_layer, h.layers, 0,
        h.body,
    )  # fmt: skip


def read_header(data: memoryview | bytes) -> Header:
    """Parse a header whose body may not be there yet. Raises FrameError."""
    if len(data) < HEADER_BYTES:
        raise FrameError("KV frame shorter than its header")
    magic, kind, flags, status, sequence, runs, rows, first, layers, _, body = _HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise FrameError("not a KV frame")
    return Header(kind, flags, status, sequence, runs, rows, first, layers, body)


def unpack_header(data: memoryview | bytes) -> Header:
    """Parse a header and check it against the frame's length. Raises FrameError."""
    header = read_header(data)
    if HEADER_BYTES + header.body > len(data):
        raise FrameError(f"KV frame of {header.body} bytes exceeds its slot of {len(data)} bytes")
    return header


def pack_run(run: Run) -> bytes:
    """The 24 bytes of a run."""
    return _RUN.pack(*run)


def unpack_runs(data: memoryview | bytes, header: Header) -> list[Run]:
    """The runs after a header. Raises FrameError if there is no room for them."""
    if RUN_BYTES * header.runs > header.body:
        raise FrameError(f"{header.runs} runs in {header.body} bytes")
    end = HEADER_BYTES + RUN_BYTES * header.runs
    return [Run(*fields) for fields in _RUN.iter_unpack(data[HEADER_BYTES:end])]
