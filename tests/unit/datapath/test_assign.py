"""The specification of the dispatch: every pair reaches its owner once, in the documented order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tarragon_hpc.datapath.assign import assign, chunks


def routings(owner_min=0):
    """(owners, topk_ids) of any small shape."""
    return st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(0, 9)).flatmap(
        lambda s: st.tuples(
            hnp.arrays(np.int32, s[0], elements=st.integers(owner_min, 3)),
            hnp.arrays(np.int32, (s[2], s[1]), elements=st.integers(0, s[0] - 1)),
        )
    )


@given(routings())
def test_every_pair_reaches_its_owner_once(routing):
    owners, ids = routing
    a = assign(owners, ids)
    seen = {(i, p) for i, part in enumerate(a.parts) for p in range(len(part.pair_rows))}
    assert len(seen) == ids.size
    for t, j in np.ndindex(ids.shape):
        part = a.parts[a.where_part[t, j]]
        pair = a.where_pair[t, j]
        seen.discard((a.where_part[t, j], pair))
        assert part.worker == owners[ids[t, j]]
        assert part.tokens[part.pair_rows[pair]] == t
        group = np.searchsorted(np.cumsum(part.counts), pair, side="right")
        assert part.experts[group] == ids[t, j]
    assert not seen


@given(routings())
def test_order_is_the_documented_one(routing):
    owners, ids = routing
    a = assign(owners, ids)
    workers = [p.worker for p in a.parts]
    assert workers == sorted(set(workers))
    for part in a.parts:
        assert (np.diff(part.experts) > 0).all()
        assert (part.counts >= 1).all()
        assert (np.diff(part.tokens) > 0).all()
        for rows in np.split(part.pair_rows, np.cumsum(part.counts)[:-1]):
            assert (np.diff(rows.astype(int)) >= 0).all()


def test_a_row_travels_once_per_worker():
    owners = np.array([0, 0, 1, 1], np.int32)
    a = assign(owners, np.array([[0, 1], [2, 0], [3, 2]], np.int32))
    first, second = a.parts
    assert first.tokens.tolist() == [0, 1]
    assert first.experts.tolist() == [0, 1]
    assert first.pair_rows.tolist() == [0, 1, 0]
    assert second.tokens.tolist() == [1, 2]
    assert second.pair_rows.tolist() == [0, 1, 1]
    assert a.where_pair.tolist() == [[0, 2], [0, 1], [2, 1]]


@given(routings(owner_min=-1))
def test_wanted_experts_without_owner_are_reported(routing):
    owners, ids = routing
    a = assign(owners, ids)
    assert a.missing == tuple(sorted({e for e in ids.ravel().tolist() if owners[e] < 0}))
    if a.missing:
        assert a.parts == ()


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_an_id_that_is_no_expert_is_an_error(bad):
    owners = np.zeros(4, np.int32)
    ids = np.array([[0, 1], [2, bad]], np.int32)
    with pytest.raises(ValueError, match=rf"topk_ids\[1, 1\] is {bad}; experts are 0 to 3"):
        assign(owners, ids)


@given(st.integers(0, 100), st.integers(1, 30))
def test_chunks_cover_all_rows_in_order(rows, slot_rows):
    cut = list(chunks(rows, slot_rows))
    assert [t for first, count in cut for t in range(first, first + count)] == list(range(rows))
    assert all(1 <= count <= slot_rows for _, count in cut)
