"""Going on without experts that nobody serves (`experts.on_missing: mask`). Pure.

Their router weights count as zero and the others of the same token are scaled up so that the sum
stays what it was; a token that has lost all its experts gets nothing from this layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tarragon_hpc.datapath.rows import array_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tarragon_hpc.datapath.ticket import Chunk


def masked_pairs(chunk: Chunk, experts: Iterable[int]) -> NDArray[np.bool_]:
    """Which (token, k) of a chunk want one of these experts: [rows, top_k]."""
    return np.isin(chunk.ids(), list(experts))


def renormalize(weights: NDArray[np.float32], masked: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Router weights [rows, top_k] without the masked ones, each row's sum kept."""
    kept = np.where(masked, np.float32(0), weights)
    total, left = weights.sum(1, keepdims=True), kept.sum(1, keepdims=True)
    scale = np.divide(total, left, out=np.zeros_like(total), where=left != 0)
    touched = masked.any(1, keepdims=True)
    return np.ascontiguousarray(np.where(touched, kept * scale, weights), np.float32)


def weights_without(chunk: Chunk, weights: int) -> NDArray[np.float32] | None:
    """The weights to combine a chunk with, if any of its pairs are masked.

    weights: address of float32 [rows, top_k], which is left as it is.
    """
    if chunk.masked is None:
        return None
    shape = chunk.rows, chunk.routes.top_k
    return renormalize(array_at(weights, shape, np.dtype(np.float32)), chunk.masked)
