"""The weighted sum of the experts' outputs: the pure specification (paper §2.1, invariant 2).

out[t] = Σ_j weights[t, j] · y[t, j] over j = 0 … k-1 in this order, every product and every sum
rounded to fp32 (no fused multiply-add), the result rounded once to the dtype (nearest even). So the
bits depend on the outputs and weights only, not on the EWs and slots the outputs came from. In the
16-bit types NaN is stored as the one canonical quiet NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
}


def to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Exact; bfloat16 comes as its bits in uint16."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round to nearest even, canonical NaN; bfloat16 as its bits in uint16."""
    if dtype == "float32":
        return values
    nan = np.isnan(values)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        with np.errstate(over="ignore"):
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        return np.where(nan, np.uint16(0x7FC0), rounded.astype(np.uint16))
    with np.errstate(over="ignore"):
        half = np.where(nan, np.float32(0), values).astype(np.float16)
    return np.where(nan, np.uint16(0x7E00), half.view(np.uint16)).view(np.float16)


def combine(outputs: NDArray[Any], weights: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`outputs` [T, k, H] and `weights` [T, k] to [T, H], in the storage type of `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = weights[:, 0, None] * to_float32(outputs[:, 0], dtype)
        for j in range(1, weights.shape[1]):
            total = total + weights[:, j, None] * to_float32(outputs[:, j], dtype)
    return from_float32(total, dtype)
