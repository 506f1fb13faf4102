"""The native router, packer and combiner give the bytes of their Python twins."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tarragon_hpc import native
from tarragon_hpc.datapath.combine import STORAGE, combine, from_float32, to_float32
from tarragon_hpc.datapath.rows import TwinRouter
from tarragon_hpc.wire import dispatch as wire

BOTH = pytest.mark.parametrize("kind", [pytest.param("native", marks=pytest.mark.native), "twin"])


def router(kind, owners, *, top_k, hidden, dtype="float32", workers=4):
    if kind == "twin":
        return TwinRouter(owners, top_k=top_k, hidden=hidden, dtype=dtype, incarnation=3, epoch=7)
    code = wire.DTYPES[dtype][0]
    return native.module.Router(owners.data, workers, top_k, hidden, code, 3, 7)


def random_rows(rng, shape, dtype):
    """Finite values of every size, zeros of both signs and subnormals included."""
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-8, 5, shape)
    values[rng.random(shape) < 0.1] = -0.0
    return from_float32(values.astype(np.float32), dtype)


SHAPES = st.tuples(
    st.integers(1, 12),  # experts
    st.integers(1, 4),  # top-k
    st.integers(0, 9),  # tokens
    st.sampled_from([1, 5, 16, 63, 64, 130]),  # hidden
    st.sampled_from(sorted(STORAGE)),
    st.integers(0, 2**32 - 1),  # seed
)


@pytest.mark.native
@given(SHAPES, st.booleans())
def test_assign_pack_and_combine_equal_the_twin(shape, some_missing):
    experts, top_k, tokens, hidden, dtype, seed = shape
    rng = np.random.default_rng(seed)
    owners = rng.integers(-1 if some_missing else 0, 4, experts, dtype=np.int32)
    ids = rng.integers(0, experts, (tokens, top_k), dtype=np.int32)
    x = random_rows(rng, (tokens, hidden), dtype)
    ours, twin = (
        router(kind, owners, top_k=top_k, hidden=hidden, dtype=dtype).assign(
            ids.ctypes.data, tokens
        )
        for kind in ("native", "twin")
    )
    assert ours.missing == twin.missing
    assert ours.parts == twin.parts
    replies = []
    for part, (_, _, pairs) in enumerate(twin.parts):
        size = 64 + 16 * 12 + 4 * 64 + 9 * hidden * 4 + 64
        a, b = bytearray(b"\xaa" * size), bytearray(b"\xaa" * size)
        args = (x.ctypes.data, 2**40 + part, 5, wire.FLAG_REPLAY)
        assert ours.pack(part, memoryview(a), *args) == twin.pack(part, memoryview(b), *args)
        assert a == b
        y = random_rows(rng, (pairs, hidden), dtype)
        replies.append(memoryview(bytes(wire.HEADER_BYTES) + y.tobytes()))
    if twin.missing:
        return
    weights = rng.standard_normal((tokens, top_k)).astype(np.float32)
    out = [np.full((tokens, hidden), 7, STORAGE[dtype]) for _ in range(2)]
    for assignment, to in zip((ours, twin), out, strict=True):
        assignment.combine(replies, weights.ctypes.data, to.ctypes.data)
    assert out[0].tobytes() == out[1].tobytes()


@BOTH
@pytest.mark.parametrize("dtype", sorted(STORAGE))
def test_the_sum_does_not_depend_on_where_the_outputs_came_from(kind, dtype):
    rng = np.random.default_rng(0)
    tokens, top_k, hidden, experts = 20, 3, 96, 6
    ids = np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.int32)
    y = random_rows(rng, (tokens, top_k, hidden), dtype)
    weights = rng.random((tokens, top_k), np.float32)
    results = set()
    for owners in ([0] * 6, [0, 1, 2, 3, 0, 1], [3, 3, 3, 0, 0, 0]):
        r = router(kind, np.array(owners, np.int32), top_k=top_k, hidden=hidden, dtype=dtype)
        a = r.assign(ids.ctypes.data, tokens)
        spec = TwinRouter(
            np.array(owners, np.int32),
            top_k=top_k,
            hidden=hidden,
            dtype=dtype,
            incarnation=1,
            epoch=1,
        ).assign(ids.ctypes.data, tokens)
        replies = []
        for part, (_, _, pairs) in enumerate(a.parts):
            rows = np.zeros((pairs, hidden), STORAGE[dtype])
            for t, j in np.argwhere(spec.assigned.where_part == part):
                rows[spec.assigned.where_pair[t, j]] = y[t, j]
            replies.append(memoryview(bytes(wire.HEADER_BYTES) + rows.tobytes()))
        out = np.zeros((tokens, hidden), STORAGE[dtype])
        a.combine(replies, weights.ctypes.data, out.ctypes.data)
        results.add(out.tobytes())
    assert results == {combine(y, weights, dtype).tobytes()}


def test_the_sum_is_in_top_k_order_and_rounded_once():
    # 2^24 + 1 + 1: adding the ones one after the other loses both, in the other order neither.
    y = np.array([[[2.0**24], [1.0], [1.0]]], np.float32)
    weights = np.ones((1, 3), np.float32)
    assert combine(y, weights, "float32")[0, 0] == 2.0**24
    assert combine(y[:, ::-1], weights, "float32")[0, 0] == 2.0**24 + 2
    # In bfloat16 256 + 1 is 256, yet 256 + 1 + 1 must be 258.
    y16 = from_float32(np.array([[[256.0], [1.0], [1.0]]], np.float32), "bfloat16")
    assert to_float32(combine(y16, weights, "bfloat16"), "bfloat16")[0, 0] == 258.0


@pytest.mark.native
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weight", [1.0, 1 / 3, 2.0**-12, 3000.0, -1e-30, 1e30])
def test_all_16_bit_values_round_as_in_the_twin(dtype, weight):
    y = np.arange(65536, dtype=np.uint16).view(STORAGE[dtype])
    w = np.array([[weight]], np.float32)
    a = router("native", np.zeros(1, np.int32), top_k=1, hidden=65536, dtype=dtype)
    ids = np.zeros((1, 1), np.int32)
    out = np.zeros(65536, STORAGE[dtype])
    reply = memoryview(bytes(wire.HEADER_BYTES) + y.tobytes())
    a.assign(ids.ctypes.data, 1).combine([reply], w.ctypes.data, out.ctypes.data)
    assert out.tobytes() == combine(y[None, None], w, dtype).tobytes()


@BOTH
@given(ids=hnp.arrays(np.int32, (3, 2), elements=st.integers(-(2**31), 2**31 - 1)))
def test_bad_ids_never_get_through(kind, ids):
    r = router(kind, np.zeros(4, np.int32), top_k=2, hidden=8)
    if ((ids >= 0) & (ids < 4)).all():
        r.assign(ids.ctypes.data, 3)
    else:
        with pytest.raises(ValueError, match=r"topk_ids\[\d, \d\] is .*; experts are 0 to 3"):
            r.assign(ids.ctypes.data, 3)


@BOTH
def test_short_buffers_are_refused(kind):
    ids = np.zeros((2, 1), np.int32)
    x = np.ones((2, 16), np.float32)
    a = router(kind, np.zeros(1, np.int32), top_k=1, hidden=16).assign(ids.ctypes.data, 2)
    size = wire.request_bytes(2, 2, 1, 16, 4)
    with pytest.raises(ValueError, match="larger than its slot"):
        a.pack(0, memoryview(bytearray(size - 1)), x.ctypes.data, 1, 0, 0)
    assert a.pack(0, memoryview(bytearray(size)), x.ctypes.data, 1, 0, 0) == size
    w = np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match="shorter than its pairs"):
        a.combine([memoryview(bytes(64 + 127))], w.ctypes.data, x.ctypes.data)


@pytest.mark.native
def test_headers_lie_where_the_wire_layout_puts_them():
    layout = native.module.dispatch_layout()
    for name, spec in (("request", wire._REQUEST), ("reply", wire._REPLY)):
        offsets, at = [], 0
        for code in spec.format[1:].rstrip("0123456789x"):
            offsets.append(at)
            at += struct.calcsize("<" + code)
        assert layout[name] == (spec.size, *offsets)


@pytest.mark.native
def test_gather_rows_copies_the_indexed_rows():
    x = np.arange(40, dtype=np.uint16).reshape(8, 5)
    index = np.array([7, 0, 0, 3], np.uint32)
    y = np.zeros((4, 5), np.uint16)
    native.module.gather_rows(x.ctypes.data, index.ctypes.data, 4, y.ctypes.data, 10)
    assert (y == x[index]).all()
