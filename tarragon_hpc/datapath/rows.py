"""Moving rows into request slots and out of reply slots: native, or its Python twin.

Tensors come and go as addresses, because those of the engine are torch's and this package does not
import torch. `Router` and `Assignment` say what both implementations do; `make_router` picks one.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.datapath.assign import assign
from tarragon_hpc.datapath.combine import STORAGE, combine
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tarragon_hpc.datapath.assign import Assigned, Part


class Assignment(Protocol):
    """The rows of one chunk, split over EWs (`assign.py` has the order of everything)."""

    @property
    def parts(self) -> tuple[tuple[int, int, int], ...]:
        """(index of the EW, rows, pairs) of each part."""

    @property
    def missing(self) -> tuple[int, ...]:
        """Wanted experts that nobody serves; there are no parts then."""

    def pack(
        self, part: int, slot: memoryview, hidden: int, sequence: int, layer: int, flags: int
    ) -> int:
        """Write the dispatch of a part into its slot; returns its length in bytes.

        hidden: address of the chunk's first row; rows are contiguous. Raises ValueError if the
        slot is too small.
        """

    def combine(self, replies: Sequence[memoryview], weights: int, out: int) -> None:
        """Weighted sum of the replies, one per part, headers checked (`combine.py`).

        weights: address of float32 [T, k]; out: address of [T, H]. Raises ValueError if a reply is
        too short.
        """


class Router(Protocol):
    """Splits chunks by one epoch of the routing table."""

    def assign(self, topk_ids: int, rows: int) -> Assignment:
        """Split int32 ids [rows, top_k] at an address. Raises ValueError for a bad id."""


def array_at(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array that lies at an address, without a copy."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = (ctypes.c_uint8 * nbytes).from_address(address)
    array: NDArray[Any] = np.frombuffer(memoryview(raw), dtype).reshape(shape)
    return array


def pack_part(
    part: Part,
    slot: memoryview,
    hidden: int,
    *,
    dtype: str,
    width: int,
    incarnation: int,
    epoch: int,
    sequence: int,
    layer: int,
    flags: int,
) -> int:
    """Write the dispatch of a part into a slot; returns its length in bytes.

    hidden: address of the chunk's first row of `width` elements; the rest is the header's. Raises
    ValueError if the slot is too small.
    """
    rows, pairs = len(part.tokens), len(part.pair_rows)
    storage = STORAGE[dtype]
    start = wire.rows_offset(len(part.experts), pairs)
    size = start + rows * width * storage.itemsize
    to = np.frombuffer(slot, np.uint8)
    if size > len(to):
        raise ValueError("dispatch is larger than its slot")
    header = wire.RequestHeader(
        dtype=wire.DTYPES[dtype][0],
        flags=flags,
        incarnation=incarnation,
        epoch=epoch,
        sequence=sequence,
        layer=layer,
        rows=rows,
        pairs=pairs,
        groups=len(part.experts),
        hidden=width,
    )
    groups = np.stack([part.experts, part.counts], axis=1).astype("<u4")
    tables = wire.pack_request_header(header) + groups.tobytes()
    tables += part.pair_rows.astype("<u4").tobytes()
    to[:start] = np.frombuffer(tables.ljust(start, b"\0"), np.uint8)
    source = array_at(hidden, (int(part.tokens.max(initial=-1)) + 1, width), storage)
    to[start:size] = source[part.tokens].view(np.uint8).reshape(-1)
    return size


class TwinAssignment:
    """`Assignment` in numpy."""

    def __init__(self, assigned: Assigned, router: TwinRouter) -> None:
        self.assigned = assigned
        self.missing = assigned.missing
        self.parts = tuple((p.worker, len(p.tokens), len(p.pair_rows)) for p in assigned.parts)
        self._router = router

    def pack(
        self, part: int, slot: memoryview, hidden: int, sequence: int, layer: int, flags: int
    ) -> int:
        r = self._router
        return pack_part(
            self.assigned.parts[part],
            slot,
            hidden,
            dtype=r.dtype,
            width=r.hidden,
            incarnation=r.incarnation,
            epoch=r.epoch,
            sequence=sequence,
            layer=layer,
            flags=flags,
        )

    def combine(self, replies: Sequence[memoryview], weights: int, out: int) -> None:
        where_part, where_pair = self.assigned.where_part, self.assigned.where_pair
        r = self._router
        outputs = np.empty((*where_part.shape, r.hidden), r.storage)
        for part, reply in enumerate(replies):
            mine = where_part == part
            pairs = self.parts[part][2]
            size = pairs * r.hidden * r.storage.itemsize
            data = np.frombuffer(reply, np.uint8)[wire.HEADER_BYTES :][:size]
            if len(data) < size:
                raise ValueError("reply is shorter than its pairs")
            rows = data.view(r.storage).reshape(pairs, r.hidden)
            outputs[mine] = rows[where_pair[mine]]
        w = array_at(weights, where_part.shape, np.dtype(np.float32))
        to = array_at(out, (len(where_part), r.hidden), r.storage)
        if len(to):
            to[:] = combine(outputs, w, r.dtype)


class TwinRouter:
    """`Router` in numpy."""

    def __init__(
        self,
        owners: NDArray[np.int32],
        *,
        top_k: int,
        hidden: int,
        dtype: str,
        incarnation: int,
        epoch: int,
    ) -> None:
        self.owners = owners
        self.top_k = top_k
        self.hidden = hidden
        self.dtype = dtype
        self.storage = STORAGE[dtype]
        self.incarnation = incarnation
        self.epoch = epoch

    def assign(self, topk_ids: int, rows: int) -> TwinAssignment:
        ids = array_at(topk_ids, (rows, self.top_k), np.dtype(np.int32))
        return TwinAssignment(assign(self.owners, ids), self)


def make_router(
    owners: NDArray[np.int32],
    workers: int,
    *,
    top_k: int,
    hidden: int,
    dtype: str,
    incarnation: int,
    epoch: int,
) -> Router:
    """A router for one epoch: owners int32 [experts] index `workers` EWs, -1 means nobody."""
    if native.reason is None:
        code = wire.DTYPES[dtype][0]
        return native.module.Router(owners.data, workers, top_k, hidden, code, incarnation, epoch)
    return TwinRouter(
        owners, top_k=top_k, hidden=hidden, dtype=dtype, incarnation=incarnation, epoch=epoch
    )
