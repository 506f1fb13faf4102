"""The grouped expert FFN on a GPU: two Triton kernels over tiles of 16 rows of one expert.

Row independence: the shape of a tile, the order over K and the instruction are fixed, K is never
split, and rows that are not there are zeros; an output element sees its own row and weights only.
Larger tiles would serve prefill better, but another tile may mean another instruction with another
order of summation. Checked in Triton's interpreter; no GPU has run it yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

    from tarragon_hpc.models.spec import ExpertShape

TILE_ROWS = 16


class LayerWeights(NamedTuple):
    """Experts of one layer on the device: gate, up [E, ffn, hidden], down [E, hidden, ffn], biases
    [E, ffn], [E, ffn], [E, hidden] or None."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None


@triton.jit
def _gate_up(
    x,
    source,
    tiles,
    gate,
    up,
    gate_bias,
    up_bias,
    h,
    hidden,
    ffn,
    alpha,
    limit,
    OAI: tl.constexpr,
    BIAS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(1)
    expert, first, count = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    some, inside = m < count, n < ffn
    rows = tl.load(source + first + m, mask=some, other=0).to(tl.int64)
    x_at = x + rows[:, None] * hidden + k[None, :]
    w_at = expert * ffn * hidden + n[:, None] * hidden + k[None, :]
    g = tl.zeros((M, N), tl.float32)
    u = tl.zeros((M, N), tl.float32)
    for k0 in range(0, hidden, K):
        left = k < hidden - k0
        a = tl.load(x_at + k0, mask=some[:, None] & left[None, :], other=0.0)
        w_mask = inside[:, None] & left[None, :]
        wg = tl.load(gate + w_at + k0, mask=w_mask, other=0.0)
        g = tl.dot(a, tl.trans(wg), g, input_precision="ieee")
        wu = tl.load(up + w_at + k0, mask=w_mask, other=0.0)
        u = tl.dot(a, tl.trans(wu), u, input_precision="ieee")
    if BIAS:
        g += tl.load(gate_bias + expert * ffn + n, mask=inside, other=0.0).to(tl.float32)[None, :]
        u += tl.load(up_bias + expert * ffn + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if OAI:
        g = tl.minimum(g, limit)
        u = tl.minimum(tl.maximum(u, -limit), limit)
        y = (u + 1.0) * (g / (1.0 + tl.exp(-alpha * g)))
    else:
        y = g / (1.0 + tl.exp(-g)) * u
    at = h + (first + m).to(tl.int64)[:, None] * ffn + n[None, :]
    tl.store(at, y.to(h.dtype.element_ty), mask=some[:, None] & inside[None, :])


@triton.jit
def _down(
    h,
    tiles,
    down,
    down_bias,
    y,
    hidden,
    ffn,
    BIAS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    tile = tiles + 3 * tl.program_id(1)
    expert, first, count = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    some, inside = m < count, n < hidden
    rows = (first + m).to(tl.int64)
    h_at = h + rows[:, None] * ffn + k[None, :]
    w_at = down + expert * hidden * ffn + n[:, None] * ffn + k[None, :]
    s = tl.zeros((M, N), tl.float32)
    for k0 in range(0, ffn, K):
        left = k < ffn - k0
        a = tl.load(h_at + k0, mask=some[:, None] & left[None, :], other=0.0)
        w = tl.load(w_at + k0, mask=inside[:, None] & left[None, :], other=0.0)
        s = tl.dot(a, tl.trans(w), s, input_precision="ieee")
    if BIAS:
        s += tl.load(down_bias + expert * hidden + n, mask=inside, other=0.0).to(tl.float32)[
            None, :
        ]
    at = y + rows[:, None] * hidden + n[None, :]
    tl.store(at, s.to(y.dtype.element_ty), mask=some[:, None] & inside[None, :])


def grouped_ffn(
    shape: ExpertShape,
    w: LayerWeights,
    x: torch.Tensor,
    source: torch.Tensor,
    tiles: torch.Tensor,
    h: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """y[i] = FFN of expert(i) on x[source[i]] for all pairs i, which are sorted by expert.

    x [rows, hidden]; source int32 [pairs]; tiles int32 [t, 3]: index of the expert in `w`, first
    pair, pairs (at most TILE_ROWS); h [pairs, ffn] is scratch; y [pairs, hidden]. All on one
    device, each at the start of its own allocation (Triton specialises on alignment).
    """
    count = tiles.shape[0]
    bias = w.gate_bias is not None
    fixed: dict[str, Any] = {"BIAS": bias, "M": TILE_ROWS, "num_warps": 4, "num_stages": 4}
    _gate_up[(triton.cdiv(shape.ffn, 32), count)](
        x, source, tiles, w.gate, w.up, w.gate_bias, w.up_bias, h, shape.hidden, shape.ffn,
        shape.alpha, shape.limit, OAI=shape.activation == "swigluoai", N=32, K=64, **fixed,
    )  # fmt: skip
    _down[(triton.cdiv(shape.hidden, 16), count)](
        h, tiles, w.down, w.down_bias, y, shape.hidden, shape.ffn, N=16, K=128, **fixed
    )
