"""Number formats of checkpoints, in numpy.

numpy knows no bfloat16: such arrays are uint16 holding the bits. FP8 and MXFP4 come as bytes.
Everything here is exact but the rounding to the served type, which is to nearest even.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tarragon_hpc.models.spec import Dtype

# What a safetensors type is called when it is one that can be served as it is.
SERVED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# E2M1 of OCP Microscaling Formats v1.0, table 5: the sign is the top bit.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def bfloat16_to_float32(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Widen; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even; NaN stays NaN (quiet)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded >> 16).astype(np.uint16)


def to_float32(array: NDArray[Any], stored: str) -> NDArray[np.float32]:
    """Any stored type of SERVED as float32."""
    if stored == "BF16":
        return bfloat16_to_float32(array)
    return array.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], served: Dtype) -> NDArray[Any]:
    """The array of the served type; bfloat16 as uint16."""
    if served == "bfloat16":
        return float32_to_bfloat16(values)
    # A value beyond float16's range becomes infinite, as in every other cast to it.
    with np.errstate(over="ignore"):
        return values.astype(served, copy=False)


def fp8_block(
    weight: NDArray[np.uint8], scale: NDArray[np.float32], block: tuple[int, int]
) -> NDArray[np.float32]:
    """E4M3 [N, K] times one scale per block of (rows, columns); scale [⌈N/rows⌉, ⌈K/columns⌉].

    The layout of DeepSeek-V3 (`weight` and `weight_scale_inv`, which despite its name multiplies).
    Raises ValueError if the scales do not fit the weight.
    """
    rows, columns = weight.shape
    expected = (-(-rows // block[0]), -(-columns // block[1]))
    if scale.shape != expected:
        raise ValueError(f"scales of shape {scale.shape}, expected {expected}")
    values = _e4m3()[weight]
    spread = np.repeat(np.repeat(scale, block[0], 0)[:rows], block[1], 1)[:, :columns]
    values *= spread
    return values


def mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Blocks [N, G, 16] of 32 four-bit values (low nibble first), scales [N, G]: [N, G * 32].

    The value is E2M1 times 2^(scale - 127); a scale of 255 makes the block NaN (OCP MX v1.0).
    Raises ValueError if the scales do not fit the blocks.
    """
    if blocks.ndim != 3 or blocks.shape[2] != 16 or scales.shape != blocks.shape[:2]:
        raise ValueError(f"blocks of shape {blocks.shape} with scales of shape {scales.shape}")
    values = np.empty((*blocks.shape, 2), np.float32)
    table = np.array(_E2M1 + tuple(-v for v in _E2M1), np.float32)
    values[..., 0] = table[blocks & 15]
    values[..., 1] = table[blocks >> 4]
    factor = np.ldexp(np.float32(1), np.minimum(scales, 254).astype(np.int32) - 127)
    factor[scales == 255] = np.nan
    values *= factor[:, :, None, None]
    return values.reshape(blocks.shape[0], blocks.shape[1] * 32)


@cache
def _e4m3() -> NDArray[np.float32]:
    """All 256 values of E4M3 (OCP FP8 v1.0): bias 7, no infinities, NaN at 0x7F and 0xFF."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    value = np.where(
        exponent == 0,
        np.ldexp(mantissa / 8, -6),
        np.ldexp(1 + mantissa / 8, exponent - 7),
    )
    value[(byte & 0x7F) == 0x7F] = np.nan
    return np.where(byte >= 128, -value, value).astype(np.float32)
