"""The expert FFN in numpy and float64, and random experts: what backends are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tarragon_hpc.ops.base import ExpertTensors, Segment

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tarragon_hpc.models.spec import Dtype, ExpertShape


def encode(values: ArrayLike, dtype: Dtype) -> NDArray[Any]:
    """Values rounded to the nearest (even) of `dtype`; bfloat16 as its bits in uint16."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def decode(array: NDArray[Any]) -> NDArray[np.float64]:
    """The values of an array as `encode` makes it."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return array.astype(np.float64)


def expert_ffn(
    t: ExpertTensors, shape: ExpertShape, dtype: Dtype, x: NDArray[Any]
) -> NDArray[np.float64]:
    """The outputs [rows, hidden] of one expert for rows x [rows, hidden] of `dtype`.

    Exact but for the one rounding of the intermediate to `dtype` that all backends make.
    """
    gate, up, down = (decode(a) for a in (t.gate, t.up, t.down))
    g, u = decode(x) @ gate.T, decode(x) @ up.T
    if t.gate_bias is not None and t.up_bias is not None:
        g, u = g + decode(t.gate_bias), u + decode(t.up_bias)
    if shape.activation == "swigluoai":
        g, u = np.minimum(g, shape.limit), np.clip(u, -shape.limit, shape.limit)
        h = (u + 1) * g / (1 + np.exp(-shape.alpha * g))
    else:
        h = g / (1 + np.exp(-g)) * u
    y = decode(encode(h, dtype)) @ down.T
    return y if t.down_bias is None else y + decode(t.down_bias)


def random_expert(shape: ExpertShape, dtype: Dtype, rng: np.random.Generator) -> ExpertTensors:
    """Weights and biases (if the shape has them) that keep the size of a row about the same."""

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        return encode(rng.standard_normal((rows, columns), np.float32) / columns**0.5, dtype)

    def bias(size: int) -> NDArray[Any] | None:
        return encode(rng.standard_normal(size, np.float32), dtype) if shape.bias else None

    return ExpertTensors(
        gate=matrix(shape.ffn, shape.hidden),
        up=matrix(shape.ffn, shape.hidden),
        down=matrix(shape.hidden, shape.ffn),
        gate_bias=bias(shape.ffn),
        up_bias=bias(shape.ffn),
        down_bias=bias(shape.hidden),
        bfloat16=dtype == "bfloat16",
    )


class Rows:
    """Rows for one expert in memory of their own: x, index and y as a `Segment` wants them."""

    def __init__(self, expert: int, x: NDArray[Any], index: ArrayLike | None = None) -> None:
        self.expert = expert
        self.x = np.ascontiguousarray(x)
        self.index = np.asarray(np.arange(len(x)) if index is None else index, np.uint32)
        self.y = np.zeros((len(self.index), x.shape[1]), x.dtype)

    def segment(self) -> Segment:
        """The segment, valid as long as this object."""
        return Segment(
            self.expert,
            self.x.ctypes.data,
            self.index.ctypes.data,
            len(self.index),
            self.y.ctypes.data,
        )
