"""Rows at addresses, and mapped arrays as tensors, for the backends that use torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from numpy.typing import NDArray

    from tarragon_hpc.ops.base import Segment


def at(address: int, nbytes: int) -> NDArray[np.uint8]:
    """The bytes at an address, writable; the caller keeps the memory valid."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def index_of(segment: Segment) -> NDArray[np.uint32]:
    """A segment's row numbers [count]."""
    return at(segment.index, 4 * segment.count).view(np.uint32)


def gather(segment: Segment, row_bytes: int) -> NDArray[np.uint8]:
    """A copy of a segment's rows, [count, row_bytes]; the segment is not empty."""
    index = index_of(segment)
    rows = int(index.max()) + 1
    return at(segment.x, rows * row_bytes).reshape(rows, row_bytes)[index]


def scatter(segments: Iterable[Segment], rows: NDArray[np.uint8]) -> None:
    """Write rows [sum of counts, row_bytes], those of one segment after another, to every y."""
    first = 0
    for s in segments:
        part = rows[first : first + s.count]
        at(s.y, part.nbytes)[:] = part.reshape(-1)
        first += s.count


def tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """A C-contiguous array as a tensor of `dtype` (of the same size), which must not be written to.

    It shares the array's memory, which the caller keeps alive, unless that is not aligned as torch
    needs it. (`torch.from_numpy` refuses bf16 and complains about read-only arrays.)
    """
    import torch

    if not array.flags.aligned:
        array = array.copy()
        return torch.from_numpy(array.view(np.uint8)).view(dtype).view(array.shape)
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return torch.frombuffer(raw, dtype=dtype).view(array.shape)
