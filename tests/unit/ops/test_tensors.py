"""What is checked before an expert is run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.reference import random_expert
from tarragon_hpc.ops.tensors import check, nbytes

SHAPE = ExpertShape(hidden=6, ffn=10, bias=True)
GOOD = random_expert(SHAPE, "float32", np.random.default_rng(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_found(dtype):
    assert check({(0, 0): random_expert(SHAPE, dtype, np.random.default_rng(0))}, SHAPE) == dtype


def test_bytes():
    assert nbytes({(0, 0): GOOD, (1, 0): GOOD}) == 2 * 4 * (3 * 60 + 10 + 10 + 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": GOOD.down}, r"layer 3 expert 1: up has shape \(6, 10\), expected \(10, 6\)"),
        ({"down_bias": GOOD.up_bias}, r"down_bias has shape \(10,\), expected \(6,\)"),
        ({"down": GOOD.down.astype(np.float16)}, "down is float16, other weights are float32"),
        ({"bfloat16": True}, "gate is float32, other weights are bfloat16"),
        ({"gate_bias": None}, "layer 3 expert 1: has .*, expected"),
        ({"gate": GOOD.gate.astype(np.float64)}, "weights are float64; float32, bfloat16 or"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        check({(3, 1): replace(GOOD, **change)}, SHAPE)


def test_mixed_types_of_two_experts():
    other = random_expert(SHAPE, "float16", np.random.default_rng(0))
    with pytest.raises(ModelError, match="layer 0 expert 1: gate is float16, other weights are"):
        check({(0, 0): GOOD, (0, 1): other}, SHAPE)


def test_no_experts_and_strided_arrays():
    with pytest.raises(ValueError, match="no experts"):
        check({}, SHAPE)
    with pytest.raises(ValueError, match="gate is not C-contiguous"):
        check({(0, 0): replace(GOOD, gate=np.asfortranarray(GOOD.gate))}, SHAPE)
