"""Zero-copy view of a safetensors file.

Format (huggingface/safetensors, "Format"): 8 bytes N, unsigned little endian; N bytes of JSON, an
object {name: {"dtype", "shape", "data_offsets": [begin, end]}} with offsets relative to the end of
the header, and an optional "__metadata__"; then the tensors, row-major, little endian.

The file is untrusted input: every number is checked before it is used, so that no array reaches
outside of the mapping.
"""

from __future__ import annotations

import json
import math
import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tarragon_hpc.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The reference implementation refuses longer headers.
_MAX_HEADER = 100_000_000

# How numpy sees the stored types; those it does not know come as unsigned integers of their size.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


class TensorInfo(NamedTuple):
    """One entry of a header; `begin` and `end` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of a file. Reads the header only. Raises ModelError on anything malformed."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ModelError(f"{path}: is not a safetensors file, or is cut off")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or 'cannot be read'}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: its safetensors header is not valid JSON") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: its safetensors header is not a JSON object")
    data = 8 + length
    return {
        name: _entry(path, name, value, data, size)
        for name, value in header.items()
        if name != "__metadata__"
    }


def _entry(path: Path, name: str, value: Any, data: int, size: int) -> TensorInfo:
    entry = value if isinstance(value, dict) else {}
    dtype = entry.get("dtype")
    shape = _whole_numbers(entry.get("shape"))
    offsets = _whole_numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise ModelError(f"{path}: malformed entry of tensor {name!r} in the safetensors header")
    begin, end = data + offsets[0], data + offsets[1]
    if begin > end:
        raise ModelError(f"{path}: tensor {name!r} ends before it begins")
    if end > size:
        raise ModelError(
            f"{path}: is cut off: tensor {name!r} ends at byte {end}, the file has {size}"
        )
    if dtype in _NUMPY and math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize != end - begin:
        raise ModelError(
            f"{path}: tensor {name!r} of shape {shape} and type {dtype} has {end - begin} bytes"
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _whole_numbers(value: Any) -> list[int] | None:
    if isinstance(value, list) and all(type(n) is int and n >= 0 for n in value):
        return value
    return None


class MappedFile:
    """One mapped file. The arrays it gives out keep the mapping alive; there is no close.

    Pages are read from disk when they are touched and shared by all processes that map the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only array on the mapping; BF16 as uint16, FP8 as uint8.

        Raises ModelError for a type that numpy cannot hold.
        """
        info = self.tensors[name]
        if info.dtype not in _NUMPY:
            raise ModelError(f"{self.path}: tensor {name!r} has the unsupported type {info.dtype}")
        dtype = np.dtype(_NUMPY[info.dtype])
        count = math.prod(info.shape)
        # The header may have changed since it was checked only if the file was rewritten under us.
        if info.end > len(self._map):
            raise ModelError(f"{self.path}: was cut short while it was being read")
        flat = np.frombuffer(self._map, dtype, count, info.begin)
        return flat.reshape(info.shape)
