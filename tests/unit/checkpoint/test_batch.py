"""Batches: each distinct range once, and every store finds its own rows in its frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.checkpoint.batch import SLACK, bytes_per_row, make_batch
from tarragon_hpc.checkpoint.pieces import Piece, Store
from tarragon_hpc.checkpoint.puts import RowParcel
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.staging import Staging
from tarragon_hpc.wire.kv import aligned
from tests.unit.checkpoint.aw_side import FakeStore, World, fill

STORES = [Store("cs0", 1, 1), Store("cs1", 1, 2), Store("cs2", 4, 3)]

wanted = st.lists(
    st.tuples(
        st.sampled_from(range(3)),  # store
        st.integers(1, 4),  # key
        st.integers(0, 3),  # start
        st.integers(1, 5),  # length
    ),
    min_size=1,
    max_size=10,
    unique_by=lambda piece: piece[:2],
)


@given(
    wanted,
    st.lists(st.sampled_from([4, 12, 40]), min_size=1, max_size=5),
    st.sampled_from([200, 400, 1000, 1 << 16]),
)
def test_frames_bring_each_store_what_it_was_to_get(wanted, row_bytes, capacity):
    layout, staging = RowLayout(row_bytes), Staging(1 << 16)
    pieces = [Piece(STORES[s], key, 2, 0, start, n) for s, key, start, n in wanted]
    committed = []
    batch = make_batch(pieces, layout, staging, committed.append)
    assert [
        (key, position) for key, start, n in batch.ranges for position in range(start, start + n)
    ] == list(zip(batch.keys.tolist(), batch.positions.tolist(), strict=True))
    assert batch.count == sum(n for _, _, n in {(k, s, n) for _, k, s, n in wanted})
    batch.commit(fill(batch))
    assert committed == [batch]
    batch.sums[:] = np.arange(len(batch.sums), dtype=np.uint32)
    for store, share in batch.shares.items():
        fake, told, slot = FakeStore(World()), [], memoryview(bytearray(capacity))
        fake.row_bytes = layout.row_bytes
        parcel = RowParcel(batch, share, capacity, lambda *a: None, lambda: told.append(1))  # noqa: B023
        while not told:
            nbytes = parcel.take().write(slot, 1)
            fake.handle(slot[:nbytes], capacity)
            parcel.finished()
        mine = {(p.key, i) for p in pieces if p.store == store for i in range(*_range(p))}
        assert {(key, position) for key, _, position in fake.rows} == set(fake.tokens) == mine
        for r, place in enumerate(zip(batch.keys.tolist(), batch.positions.tolist(), strict=True)):
            for layer in range(layout.layers):
                if place in mine and (place[0], layer, place[1]) in fake.rows:
                    _, data = fake.rows[place[0], layer, place[1]]
                    assert data == batch.rows(layer)[r].tobytes()
    batch.release()
    assert staging.used == 0


def _range(piece):
    return piece.start, piece.start + piece.length


def test_rows_that_several_stores_want_are_there_once():
    layout = RowLayout([8])
    pieces = [Piece(store, 5, 1, 0, 3, 2) for store in STORES]
    batch = make_batch(pieces, layout, Staging(4096), print)
    assert batch.count == 2
    assert {s: share.segments for s, share in batch.shares.items()} == dict.fromkeys(
        STORES, [(0, 2)]
    )


def test_rows_of_the_same_stores_lie_together():
    a, b, _ = STORES
    pieces = [Piece(s, key, 1, 0, 0, 1) for key, s in enumerate([a, b, a, b, a])]
    batch = make_batch(pieces, RowLayout([8]), Staging(4096), print)
    assert batch.shares[a].segments == [(0, 3)]
    assert batch.shares[b].segments == [(3, 5)]


def test_no_room_takes_nothing():
    layout = RowLayout([100, 20])
    staging = Staging(aligned(10 * bytes_per_row(layout) + SLACK))
    piece = Piece(STORES[0], 1, 1, 0, 0, 11)
    assert make_batch([piece], layout, staging, print) is None
    assert staging.used == 0
    assert make_batch([piece._replace(length=10)], layout, staging, print) is not None


def test_a_batch_that_is_given_up_gives_its_memory_back():
    staging = Staging(4096)
    make_batch([Piece(STORES[0], 1, 1, 0, 0, 3)], RowLayout([8]), staging, print).discard()
    assert staging.used == 0


def test_nothing_is_marked_absent_in_used_memory():
    staging = Staging(4096)
    staging.memory.fill(255)
    batch = make_batch([Piece(STORES[0], 1, 1, 0, 0, 3)], RowLayout([8, 8]), staging, print)
    assert batch.absent(0).tolist() == batch.absent(1).tolist() == [0, 0, 0]
    batch.absent(1)[2] = 1
    assert batch.gone.tolist() == [0, 0, 0, 0, 0, 1]


def test_nothing_to_copy_is_an_error():
    with pytest.raises(ValueError, match="pieces"):
        make_batch([], RowLayout([8]), Staging(64), print)
