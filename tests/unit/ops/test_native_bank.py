"""The native kernel: right, and every row independent of what it rides with."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc import native
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops.base import ExpertTensors
from tarragon_hpc.ops.reference import Rows, decode, encode, expert_ffn, random_expert

if native.reason is None:
    from tarragon_hpc.ops.native_bank import NativeBank

    ISAS = native.module.ffn_instruction_sets()
else:
    ISAS = []

pytestmark = pytest.mark.native

DTYPES = ("float32", "bfloat16", "float16")
EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SILU = ExpertShape(hidden=72, ffn=130)
OAI = ExpertShape(hidden=72, ffn=130, activation="swigluoai", bias=True)


@cache
def experts(shape, dtype, layers=(0,), count=1):
    rng = np.random.default_rng(count)
    return {(lay, e): random_expert(shape, dtype, rng) for lay in layers for e in range(count)}


def random_rows(count, shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return encode(rng.standard_normal((count, shape.hidden), np.float32), dtype)


def run(bank, *batch, layer=0):
    bank.run(layer, [rows.segment() for rows in batch])
    return [rows.y for rows in batch]


def same_bits(a, b):
    return np.array_equal(a.view(np.uint8), b.view(np.uint8))


def assert_close(y, expected, dtype):
    scale = np.abs(expected).max()
    bound = EPS[dtype] * (16 if dtype == "float32" else 1)
    assert np.abs(decode(y) - expected).max() <= bound * scale


@pytest.mark.parametrize("size", [(64, 96), (72, 130), (130, 72), (5, 3), (1100, 40), (33, 2100)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", [SILU, OAI, replace(SILU, bias=True)], ids=str)
def test_close_to_float64(base, dtype, size):
    shape = replace(base, hidden=size[0], ffn=size[1])
    tensors = experts(shape, dtype)
    x = random_rows(7, shape, dtype)
    (y,) = run(NativeBank(tensors, shape), Rows(0, x))
    assert_close(y, expert_ffn(tensors[0, 0], shape, dtype, x), dtype)


def values_of(activation, g, u=1.0):
    """act(g, u) as a one-column expert computes it in fp32."""
    shape = ExpertShape(hidden=2, ffn=1, activation=activation)
    tensors = ExpertTensors(
        gate=np.array([[1, 0]], np.float32),
        up=np.array([[0, 1]], np.float32),
        down=np.array([[1], [0]], np.float32),
    )
    x = np.stack([g, np.full_like(g, u)], axis=1)
    (y,) = run(NativeBank({(0, 0): tensors}, shape), Rows(0, x))
    return y[:, 0].astype(np.float64)


def test_silu_is_accurate_to_a_few_units_in_the_last_place():
    g = np.linspace(-80, 80, 20001, dtype=np.float32)
    exact = g.astype(np.float64) / (1 + np.exp(-g.astype(np.float64)))
    error = np.abs(values_of("silu", g) - exact)
    assert (error <= 4 * np.spacing(np.abs(exact).astype(np.float32))).all()


def test_silu_of_extreme_values():
    y = values_of("silu", np.array([-1e30, -200, 200, 1e30, 0], np.float32))
    assert y[0] == pytest.approx(0, abs=1e-7)
    assert y[1] == pytest.approx(0, abs=1e-30)
    assert list(y[2:]) == [200, np.float32(1e30), 0]


def test_swigluoai_clamps_gate_from_above_and_up_on_both_sides():
    top = 7 / (1 + np.exp(-1.702 * 7))
    y = values_of("swigluoai", np.array([6.5, 7, 50], np.float32), u=9.0)
    assert y[1] == y[2] == pytest.approx(8 * top, rel=1e-6)
    assert y[0] < y[1]
    y = values_of("swigluoai", np.array([-50, 7], np.float32), u=-9.0)
    assert list(y) == pytest.approx([0, -6 * top], rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 20, 30, 49])
def test_instruction_sets_give_the_same_bits(dtype, count):
    shape = replace(OAI, hidden=1100, ffn=70)
    x = random_rows(count, shape, dtype)
    x[0, 3:9] = encode([np.inf, 1e-42, -0.0, 6e4, 6e-8, 0.0], dtype)
    tensors = experts(shape, dtype)
    ys = [run(NativeBank(tensors, shape, isa=isa), Rows(0, x))[0] for isa in ISAS]
    assert "scalar" in ISAS
    for y in ys[1:]:
        assert same_bits(y[1:], ys[0][1:])
        finite = np.isfinite(decode(ys[0][:1]))
        assert np.array_equal(np.isfinite(decode(y[:1])), finite)


def test_scalar_conversions_round_like_the_instructions():
    """Identity experts: what comes out went through both conversions of every instruction set."""
    shape = ExpertShape(hidden=1, ffn=1, activation="swigluoai", alpha=0.0, limit=np.inf)
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype, x in (("float16", every.view(np.float16)), ("bfloat16", every)):
        one, zero = encode([[1.0]], dtype), encode([[0.0]], dtype)
        tensors = {(0, 0): ExpertTensors(one, zero, one, bfloat16=dtype == "bfloat16")}
        x = x[np.isfinite(decode(x))].reshape(-1, 1)
        ys = [run(NativeBank(tensors, shape, isa=isa), Rows(0, x))[0] for isa in ISAS]
        assert np.array_equal(decode(ys[0]), decode(encode(decode(x) / 2, dtype)))
        assert all(same_bits(y, ys[0]) for y in ys)


SHAPES = [SILU, replace(OAI, hidden=96, ffn=64), ExpertShape(hidden=1056, ffn=40)]
PIECE = st.tuples(st.integers(0, 1), st.lists(st.integers(0, 79), max_size=40))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    isa=st.sampled_from(ISAS or [""]),
    pieces=st.lists(PIECE, min_size=1, max_size=6),
)
def test_a_row_gives_the_same_bits_in_every_batch(shape, dtype, threads, isa, pieces):
    tensors = experts(shape, dtype, count=2)
    x = random_rows(80, shape, dtype)
    one_by_one = alone(shape, dtype)
    batch = [Rows(expert, x, index) for expert, index in pieces]
    run(NativeBank(tensors, shape, threads, isa=isa), *batch)
    for rows in batch:
        assert same_bits(rows.y, one_by_one[rows.expert][rows.index])


@cache
def alone(shape, dtype):
    """The outputs of both experts for the 80 rows, each row in a batch of its own."""
    bank = NativeBank(experts(shape, dtype, count=2), shape)
    x = random_rows(80, shape, dtype)
    return [np.concatenate([run(bank, Rows(e, x, [i]))[0] for i in range(80)]) for e in (0, 1)]


def test_more_rows_than_fit_the_working_memory():
    shape = ExpertShape(hidden=40, ffn=40)
    bank = NativeBank(experts(shape, "float32", count=2), shape, threads=2)
    x = random_rows(80, shape, "float32")
    index = np.arange(1300) % 80
    ys = run(bank, Rows(0, x, index), Rows(1, x, index[::-1]), Rows(0, x, index[:9]))
    one_by_one = alone(shape, "float32")
    assert same_bits(ys[0], one_by_one[0][index])
    assert same_bits(ys[1], one_by_one[1][index[::-1]])
    assert same_bits(ys[2], one_by_one[0][:9])


def test_a_row_that_is_not_a_number_harms_nobody():
    shape = SILU
    bank = NativeBank(experts(shape, "float32"), shape)
    x = random_rows(9, shape, "float32")
    (good,) = run(bank, Rows(0, x))
    x[4] = np.nan
    (y,) = run(bank, Rows(0, x))
    assert np.isnan(y[4]).all()
    others = np.arange(9) != 4
    assert same_bits(y[others], good[others])


def at_the_end_of_memory(array, libc):
    """A copy whose last byte is followed by a page that nobody may read, on an odd address."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    out = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    out[:] = array
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 3, 25])
def test_nothing_past_the_end_of_a_tensor_is_read(dtype, isa, count):
    libc = ctypes.CDLL(None, use_errno=True)
    shape = replace(SILU, hidden=71, ffn=129)
    inside = experts(shape, dtype)[0, 0]
    edge = replace(
        inside,
        **{n: at_the_end_of_memory(getattr(inside, n), libc) for n in ("gate", "up", "down")},
    )
    x = random_rows(count, shape, dtype)
    (expected,) = run(NativeBank({(0, 0): inside}, shape, isa=isa), Rows(0, x))
    (y,) = run(NativeBank({(0, 0): edge}, shape, isa=isa), Rows(0, at_the_end_of_memory(x, libc)))
    assert same_bits(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 8])
def test_weights_at_any_address(dtype, offset):
    inside = experts(SILU, dtype)[0, 0]

    def move(array):
        memory = np.zeros(array.nbytes + 64, np.uint8)
        out = memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        out[:] = array
        return out

    moved = replace(inside, **{n: move(getattr(inside, n)) for n in ("gate", "up", "down")})
    x = random_rows(9, SILU, dtype)
    (expected,) = run(NativeBank({(0, 0): inside}, SILU), Rows(0, x))
    (y,) = run(NativeBank({(0, 0): moved}, SILU), Rows(0, x))
    assert same_bits(y, expected)


def test_layers_and_experts_are_told_apart():
    tensors = experts(SILU, "float32", layers=(0, 2), count=2)
    bank = NativeBank(tensors, SILU)
    x = random_rows(3, SILU, "float32")
    for (layer, expert), t in tensors.items():
        (y,) = run(bank, Rows(expert, x), layer=layer)
        assert_close(y, expert_ffn(t, SILU, "float32", x), "float32")
    assert bank.experts() == {0, 1}
    assert bank.nbytes() == 4 * 3 * SILU.hidden * SILU.ffn * 4


def test_what_is_not_loaded_is_refused_before_anything_is_written():
    bank = NativeBank(experts(SILU, "float32", layers=(2,)), SILU)
    good, bad = (Rows(e, random_rows(2, SILU, "float32")) for e in (0, 5))
    with pytest.raises(KeyError, match="layer 2 expert 5 is not loaded"):
        run(bank, good, bad, layer=2)
    assert not good.y.any()
    with pytest.raises(KeyError, match="layer 1 expert 0 is not loaded"):
        run(bank, good, layer=1)


def test_empty_batches():
    bank = NativeBank(experts(SILU, "float32"), SILU, threads=2)
    run(bank)
    run(bank, Rows(0, random_rows(3, SILU, "float32"), []))


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="mmx"):
        NativeBank(experts(SILU, "float32"), SILU, isa="mmx")


def test_callers_in_several_threads_take_turns():
    bank = NativeBank(experts(SILU, "bfloat16", count=2), SILU, threads=2)
    x = random_rows(80, SILU, "bfloat16")
    one_by_one = alone(SILU, "bfloat16")
    wrong = []

    def call(expert):
        for _ in range(20):
            (y,) = run(bank, Rows(expert, x))
            if not same_bits(y, one_by_one[expert]):
                wrong.append(expert)

    threads = [threading.Thread(target=call, args=(i % 2,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def helpers():
    """State (S: sleeping) of the kernel's own threads in this process."""
    states = []
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("ffn-"):
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return states


def test_idle_threads_sleep_and_leave_with_their_bank():
    before = len(helpers())
    bank = NativeBank(experts(SILU, "float32"), SILU, threads=3)
    run(bank, Rows(0, random_rows(3, SILU, "float32")))
    deadline = time.monotonic() + 5
    while helpers().count("S") < before + 2:
        assert time.monotonic() < deadline, helpers()
    del bank
    assert len(helpers()) == before


def test_one_thread_means_no_threads():
    before = len(helpers())
    bank = NativeBank(experts(SILU, "float32"), SILU, threads=1)
    run(bank, Rows(0, random_rows(3, SILU, "float32")))
    assert len(helpers()) == before
