"""The GPU path without a GPU: the same bank and kernels in Triton's interpreter, on CPU tensors.

The interpreter has no bf16 products, and its sums are numpy's: only a GPU shows row independence to
the last bit (tests/gpu). What is shown here: right results whatever the batch looks like.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.cuda_bank import CudaBank
from tarragon_hpc.ops.reference import Rows, decode, encode, expert_ffn, random_expert

for shape, dtype, bound in (
    (ExpertShape(hidden=72, ffn=130), "float32", 1e-6),
    (ExpertShape(hidden=72, ffn=130, activation="swigluoai", bias=True), "float16", 2**-10),
    (ExpertShape(hidden=128, ffn=64, bias=True), "float32", 1e-6),
):
    rng = np.random.default_rng(0)
    tensors = {(lay, e): random_expert(shape, dtype, rng) for lay in (0, 3) for e in (2, 5)}
    bank = CudaBank(tensors, shape, device="cpu")
    x, other = (encode(rng.standard_normal((n, shape.hidden)), dtype) for n in (30, 5))
    batch = [Rows(5, x, range(29, -1, -1)), Rows(2, x, [7]), Rows(5, other, [4, 0]), Rows(2, x, [])]
    batch[1].x = batch[0].x  # one dispatch, two experts
    for layer in (0, 3):
        bank.run(layer, [rows.segment() for rows in batch])
        for rows in batch:
            if len(rows.y) == 0:
                continue
            expected = expert_ffn(tensors[layer, rows.expert], shape, dtype, rows.x[rows.index])
            error = np.abs(decode(rows.y) - expected).max() / np.abs(expected).max()
            assert error < bound, (shape, dtype, layer, rows.expert, error)
    try:
        bank.run(0, [Rows(3, x).segment()])
    except KeyError as error:
        assert "layer 0 expert 3 is not loaded" in str(error)
    else:
        raise AssertionError("an unknown expert was accepted")
    bank.run(0, [])
    assert bank.experts() == {2, 5}
    more = {(lay, e): random_expert(shape, dtype, rng) for lay in (0, 3, 4) for e in (1, 9)}
    size, both = bank.nbytes(), tensors | more
    bank.add(bank.prepare(more))
    assert bank.experts() == {1, 2, 5, 9}
    assert bank.nbytes() == size * 10 // 4
    for gone, left in (((5, 7), {1, 2, 9}), ((1, 9), {2})):
        bank.remove(gone)
        assert bank.experts() == left
        for layer, expert in both:
            if expert not in left:
                continue
            one = Rows(expert, x, [3, 0])
            bank.run(layer, [one.segment()])
            expected = expert_ffn(both[layer, expert], shape, dtype, x[[3, 0]])
            error = np.abs(decode(one.y) - expected).max() / np.abs(expected).max()
            assert error < bound, (shape, dtype, layer, expert, error)
    assert bank.nbytes() == size // 2
print("right")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_right_whatever_the_batch():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "right\n", done.stderr[-3000:]
