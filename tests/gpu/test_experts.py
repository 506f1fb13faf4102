"""The GPU's expert FFN: right, row-independent, and at decode sizes near its memory's speed."""

from __future__ import annotations

import numpy as np
import pytest

from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.reference import Rows, decode, encode, expert_ffn, random_expert

pytestmark = pytest.mark.gpu

BOUND = {"float32": 2.0**-18, "bfloat16": 2.0**-7, "float16": 2.0**-10}
SILU = ExpertShape(hidden=1024, ffn=2048)
OAI = ExpertShape(hidden=2880, ffn=2880, activation="swigluoai", bias=True)
ODD = ExpertShape(hidden=72, ffn=130, bias=True)


def make(shape, dtype, count=2):
    from tarragon_hpc.ops.cuda_bank import CudaBank

    rng = np.random.default_rng(0)
    tensors = {(0, e): random_expert(shape, dtype, rng) for e in range(count)}
    return tensors, CudaBank(tensors, shape)


def random_rows(count, shape, dtype):
    return encode(np.random.default_rng(1).standard_normal((count, shape.hidden)), dtype)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("shape", [SILU, OAI, ODD], ids=str)
def test_close_to_float64(shape, dtype):
    tensors, bank = make(shape, dtype)
    rows = Rows(1, random_rows(37, shape, dtype))
    bank.run(0, [rows.segment()])
    expected = expert_ffn(tensors[0, 1], shape, dtype, rows.x)
    assert np.abs(decode(rows.y) - expected).max() <= BOUND[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("shape", [SILU, ODD], ids=str)
def test_a_row_gives_the_same_bits_in_every_batch(shape, dtype):
    _, bank = make(shape, dtype)
    x = random_rows(64, shape, dtype)
    alone = []
    for expert in (0, 1):
        single = [Rows(expert, x, [i]) for i in range(64)]
        for rows in single:
            bank.run(0, [rows.segment()])
        alone.append(np.concatenate([rows.y for rows in single]))
    rng = np.random.default_rng(2)
    for sizes in ((64, 0, 1), (3, 16, 17), (1, 2, 400)):
        batch = [Rows(e % 2, x, rng.integers(0, 64, n)) for e, n in enumerate(sizes)]
        bank.run(0, [rows.segment() for rows in batch])
        for rows in batch:
            assert np.array_equal(
                rows.y.view(np.uint8), alone[rows.expert][rows.index].view(np.uint8)
            )


@pytest.mark.parametrize("rows", [1, 8, 16])
def test_share_of_the_memory_bandwidth_at_decode_sizes(rows, record_property):
    """The kernels alone, all of 32 experts busy, against a copy of as many bytes as they read."""
    import torch

    from tarragon_hpc.ops.triton_ffn import LayerWeights, grouped_ffn

    shape, count = ExpertShape(hidden=2048, ffn=4096), 32
    kind = {"dtype": torch.bfloat16, "device": "cuda"}
    gate, up = (torch.randn(count, shape.ffn, shape.hidden, **kind) for _ in range(2))
    down = torch.randn(count, shape.hidden, shape.ffn, **kind)
    weights = LayerWeights(gate, up, down, None, None, None)
    x = torch.randn(rows, shape.hidden, **kind)
    pairs = count * rows
    source = torch.arange(pairs, dtype=torch.int32, device="cuda") % rows
    tiles = torch.tensor([(e, e * rows, rows) for e in range(count)], dtype=torch.int32).cuda()
    h = torch.empty(pairs, shape.ffn, **kind)
    y = torch.empty(pairs, shape.hidden, **kind)

    def seconds(call):
        times = []
        for _ in range(13):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        return sorted(times[3:])[5]

    nbytes = 2 * (gate.numel() + up.numel() + down.numel())
    target = torch.empty_like(gate)
    copy = 2 * 2 * gate.numel() / seconds(lambda: target.copy_(gate))
    ours = nbytes / seconds(lambda: grouped_ffn(shape, weights, x, source, tiles, h, y))
    record_property("share_of_bandwidth", ours / copy)
    print(f"{rows} rows: {ours / 1e9:.0f} of {copy / 1e9:.0f} GB/s")
    assert ours >= 0.5 * copy
