"""Sums of KV rows: the right polynomial, native as in Python, and nothing wrong passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc import native
from tarragon_hpc.wire import kv_sums
from tarragon_hpc.wire.kv import SUM_ABSENT, SUM_NONE

BOTH = pytest.mark.parametrize("kind", [pytest.param("native", marks=pytest.mark.native), "twin"])


def seal(kind, payload, first, row_bytes, keys, positions, absent, *, check=True):
    sums = np.full((len(row_bytes), len(keys)), 77, np.uint32)
    make = kv_sums.seal if kind == "native" else kv_sums.seal_twin
    make(payload, first, row_bytes, keys, positions, absent, sums, check=check)
    return sums


def bad_rows(kind, *args, check=True):
    return (kv_sums.bad_rows if kind == "native" else kv_sums.bad_rows_twin)(*args, check=check)


def random_rows(seed, rows, row_bytes):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**64, rows, np.uint64)
    positions = rng.integers(0, 2**32, rows, np.uint32)
    return rng.integers(0, 256, (rows, sum(row_bytes)), np.uint8), keys, positions


def layer_major(tokens, row_bytes):
    cuts = np.cumsum(row_bytes)[:-1]
    return np.concatenate([part.ravel() for part in np.split(tokens, cuts, axis=1)])


def test_crc_of_rfc_3720():
    """Its test vectors (appendix B.4), and the usual check value."""
    vectors = np.array([[0] * 32, [255] * 32, range(32), range(31, -1, -1)], np.uint8)
    assert kv_sums.crc32c(vectors).tolist() == [0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C]
    assert kv_sums.crc32c(np.frombuffer(b"123456789", np.uint8)[None]) == [0xE3069283]


@pytest.mark.native
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 11),
    st.lists(st.sampled_from([1, 7, 8, 64, 100, 1152]), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.booleans(),
)
def test_native_equals_the_twin(seed, rows, row_bytes, first, check):
    tokens, keys, positions = random_rows(seed, rows, row_bytes)
    payload = layer_major(tokens, row_bytes)
    absent = (np.random.default_rng(seed).random((len(row_bytes), rows)) < 0.2).astype(np.uint8)
    for gone in (absent, None):
        args = (payload, first, row_bytes, keys, positions, gone)
        ours, twin = (seal(kind, *args, check=check) for kind in ("native", "twin"))
        assert np.array_equal(ours, twin)
    sums = seal("native", payload, 0, row_bytes, keys, positions, absent).T.copy()
    spoilt = np.random.default_rng(seed + 1).random(sums.shape) < 0.3
    sums[spoilt] = np.random.default_rng(seed).integers(0, 3, spoilt.sum())
    args = (tokens, row_bytes, keys, positions, sums)
    ours, twin = (bad_rows(kind, *args, check=check) for kind in ("native", "twin"))
    assert np.array_equal(ours, twin)
    assert not ours[~spoilt].any()


@BOTH
def test_what_is_absent_or_not_summed_says_so(kind):
    tokens, keys, positions = random_rows(1, 3, [16, 8])
    payload = layer_major(tokens, [16, 8])
    absent = np.array([[0, 1, 0], [0, 0, 1]], np.uint8)
    sums = seal(kind, payload, 5, [16, 8], keys, positions, absent)
    assert ((sums == SUM_ABSENT) == absent).all()
    assert (sums[absent == 0] > SUM_NONE).all()
    none = seal(kind, payload, 5, [16, 8], keys, positions, absent, check=False)
    assert (none == np.where(absent, SUM_ABSENT, SUM_NONE)).all()
    given = none.T.copy()
    assert not bad_rows(kind, tokens, [16, 8], keys, positions, given, check=False).any()
    bad = bad_rows(kind, tokens, [16, 8], keys, positions, given, check=True)
    assert np.array_equal(bad, 1 - absent.T)


@BOTH
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("nothing", (0, 0)),
        ("bit", (0, 1)),
        ("key", (1, 1)),
        ("position", (1, 1)),
        ("layers swapped", (1, 1)),
        ("sum", (1, 0)),
    ],
)
def test_a_wrong_row_is_found(kind, wrong, expected):
    tokens, keys, positions = random_rows(2, 6, [24, 24])
    sums = seal(kind, layer_major(tokens, [24, 24]), 0, [24, 24], keys, positions, None).T.copy()
    if wrong == "bit":
        tokens[4, 24 + 13] ^= 1
    elif wrong == "key":
        keys[4] ^= np.uint64(1 << 63)
    elif wrong == "position":
        positions[4] += 1
    elif wrong == "layers swapped":
        tokens[4] = np.roll(tokens[4], 24)
        sums[4] = sums[4, ::-1]
    elif wrong == "sum":
        sums[4, 0] ^= 1 << 31
    bad = bad_rows(kind, tokens, [24, 24], keys, positions, sums)
    assert bad[4].tolist() == list(expected)
    assert not np.delete(bad, 4, axis=0).any()


@BOTH
@pytest.mark.parametrize("short", range(4))
def test_lengths_have_to_fit(kind, short):
    tokens, keys, positions = random_rows(3, 2, [8])
    sums = np.zeros((2, 1), np.uint32)
    arrays = [tokens, positions, sums, np.zeros((1, 2), np.uint8)]
    arrays[short] = arrays[short].ravel()[:-1].copy()
    rows, at, table, absent = arrays
    make = kv_sums.seal if kind == "native" else kv_sums.seal_twin
    with pytest.raises(ValueError, match="instead of"):
        make(rows, 0, [8], keys, at, absent, table, check=True)
    if short < 3:
        with pytest.raises(ValueError, match="instead of"):
            bad_rows(kind, rows, [8], keys, at, table)


@pytest.mark.native
def test_native_wants_one_size_for_each_layer():
    one = np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="row_bytes"):
        native.module.kv_seal(one, 2, 1, 0, [8], one, one[:0], None, one, True)
