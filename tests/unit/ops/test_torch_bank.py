"""The torch twin: close to float64 and to the native kernel, and row-independent as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tarragon_hpc import native
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.reference import Rows, decode, encode, expert_ffn, random_expert

torch = pytest.importorskip("torch")

SILU = ExpertShape(hidden=72, ffn=130)
OAI = ExpertShape(hidden=72, ffn=130, activation="swigluoai", bias=True)
BOUND = {"float32": 2.0**-19, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.fixture
def make_bank():
    from tarragon_hpc.ops.torch_bank import TorchBank

    threads = torch.get_num_threads()
    yield TorchBank
    torch.set_num_threads(threads)


def experts(shape, dtype, count=2):
    rng = np.random.default_rng(1)
    return {(0, e): random_expert(shape, dtype, rng) for e in range(count)}


def random_rows(count, shape, dtype):
    rng = np.random.default_rng(2)
    return encode(rng.standard_normal((count, shape.hidden), np.float32), dtype)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("shape", [SILU, OAI, replace(SILU, hidden=33, ffn=5)], ids=str)
def test_close_to_float64_and_to_the_native_kernel(make_bank, shape, dtype):
    tensors = experts(shape, dtype)
    x = random_rows(21, shape, dtype)
    expected = expert_ffn(tensors[0, 1], shape, dtype, x)
    banks = [make_bank(tensors, shape)]
    if native.reason is None:
        from tarragon_hpc.ops.native_bank import NativeBank

        banks.append(NativeBank(tensors, shape))
    for bank in banks:
        rows = Rows(1, x)
        bank.run(0, [rows.segment()])
        assert np.abs(decode(rows.y) - expected).max() <= BOUND[dtype] * np.abs(expected).max()
        assert bank.experts() == {0, 1}
        assert bank.nbytes() == sum(a.nbytes for a in arrays(tensors))


def arrays(tensors):
    for t in tensors.values():
        yield from (a for a in (t.gate, t.up, t.down) if a is not None)
        yield from (a for a in (t.gate_bias, t.up_bias, t.down_bias) if a is not None)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [OAI, ExpertShape(hidden=256, ffn=512)], ids=str)
def test_a_row_gives_the_same_bits_in_every_batch(make_bank, shape, dtype, threads):
    tensors = experts(shape, dtype)
    bank = make_bank(tensors, shape, threads)
    x = random_rows(40, shape, dtype)
    alone = []
    for expert in (0, 1):
        single = [Rows(expert, x, [i]) for i in range(40)]
        for rows in single:
            bank.run(0, [rows.segment()])
        alone.append(np.concatenate([rows.y for rows in single]))
    rng = np.random.default_rng(3)
    for sizes in ((40, 0, 1), (3, 16, 17), (1, 2, 33)):
        batch = [Rows(e % 2, x, rng.integers(0, 40, n)) for e, n in enumerate(sizes)]
        bank.run(0, [rows.segment() for rows in batch])
        for rows in batch:
            assert np.array_equal(
                rows.y.view(np.uint8), alone[rows.expert][rows.index].view(np.uint8)
            )


def test_what_is_not_loaded_is_refused_before_anything_is_written(make_bank):
    bank = make_bank(experts(SILU, "float32"), SILU)
    good, bad = (Rows(e, random_rows(2, SILU, "float32")) for e in (0, 5))
    with pytest.raises(KeyError, match="layer 0 expert 5 is not loaded"):
        bank.run(0, [good.segment(), bad.segment()])
    with pytest.raises(KeyError, match="layer 1 expert 0 is not loaded"):
        bank.run(1, [good.segment()])
    assert not good.y.any()


def test_read_only_and_unaligned_weights(make_bank):
    """As a file mapping has them, without a warning from torch."""
    tensors = experts(SILU, "float32")
    x = random_rows(4, SILU, "float32")

    def mapped(array):
        data = b"?" + array.tobytes()
        return np.frombuffer(data, array.dtype, offset=1).reshape(array.shape)

    inside = tensors[0, 0]
    moved = replace(inside, **{n: mapped(getattr(inside, n)) for n in ("gate", "up", "down")})
    ys = []
    for t in (inside, moved):
        rows = Rows(0, x)
        make_bank({(0, 0): t}, SILU).run(0, [rows.segment()])
        ys.append(rows.y)
    assert np.array_equal(*ys)
