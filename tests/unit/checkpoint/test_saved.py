"""What one store keeps is written to a file and read by another, as far as the file goes."""

from __future__ import annotations

import functools
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.checkpoint.plain_store import PlainStore
from tarragon_hpc.checkpoint.saved import load, save
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv import Run
from tests.unit.checkpoint.frames import Client
from tests.unit.checkpoint.test_store import expected

NEXT = 1 << 20  # the first attempt of the next head
RUNS = (Run(7, 1, 0, 0, 3), Run(8, 2, 0, 0, 5), Run(9, 1, 0, 0, 300))


def clock():
    return 0.0


def written(store, keys=(7, 8, 9), now=clock, deadline=1.0):
    """What is in the file, and what is said of it. Frames are short: the longest takes several."""
    file = io.BytesIO()
    copied = save(store, file, set(keys), NEXT - 1, now, deadline, frame_bytes=4096)
    return file.getvalue(), copied


@pytest.fixture
def full(make_store):
    """A store with three requests."""
    store = make_store(1 << 20)
    client = Client(store)
    for run in RUNS:
        assert client.put(run) == []
    return store


@functools.cache
def saved():
    store = PlainStore(1 << 20)
    client = Client(store)
    for run in RUNS:
        client.put(run)
    return written(store)[0]


def test_what_is_kept_comes_back_row_by_row(full, make_store):
    data, copied = written(full)
    assert copied == (3, 308, "")
    other = make_store(1 << 20)
    assert load(other, io.BytesIO(data), clock) == (3, 308, "")
    assert other.prefixes() == {7: 3, 8: 5, 9: 300}
    reader, before = Client(other), Client(full, 9)
    for run in RUNS:
        assert reader.look(run.key, NEXT) == before.look(run.key, NEXT)
        found = reader.fetch(run.key, 0, run.length, NEXT)
        assert found.rows == expected(run.key, 0, run.length, run.attempt)


def test_both_stores_write_the_same_file(full):
    assert written(full)[0] == saved()


def test_only_what_is_asked_for_is_written_the_longest_first(full):
    data, copied = written(full, keys=(7, 9, 1234))
    assert copied == (2, 303, "")
    store = PlainStore(1 << 20)
    assert load(store, io.BytesIO(data), clock).tokens == 303
    assert list(store.prefixes()) == [9, 7]


def test_who_wrote_before_neither_writes_nor_forgets_any_more(full):
    written(full, keys=(7,))
    client = Client(full, 2)
    client.free(Run(7, 1, 0, 0, 0), Run(8, 2, 0, 0, 0))
    assert client.put(Run(7, 1, 0, 3, 2)) == [7]
    assert full.prefixes() == {7: 3, 9: 300}
    assert client.look(7, NEXT)[0] == kv.STATUS_OK


def test_when_time_is_over_what_was_written_counts(full):
    ticks = itertools.count()
    data, copied = written(full, now=lambda: float(next(ticks)), deadline=9.0)
    assert copied.requests == 1
    assert 0 < copied.tokens < 300
    assert copied.problem == "out of time after 1 of 3"
    assert load(PlainStore(1 << 20), io.BytesIO(data), clock) == (1, copied.tokens, "")


def test_a_store_without_anything_writes_nothing(make_store):
    assert written(make_store(1 << 20)) == (b"", (0, 0, ""))


def test_a_store_that_is_too_small_takes_what_it_can():
    store = PlainStore(1 << 13)
    load(store, io.BytesIO(saved()), clock)
    assert store.prefixes() == {7: 3, 8: 5}


def test_what_was_read_goes_if_nobody_comes_for_it(make_store):
    store = make_store(1 << 20)
    load(store, io.BytesIO(saved()), clock)
    Client(store)
    store.expire(1000.0)
    store.client_lost(0, 1000.0)
    assert Client(store, 2).look(8, NEXT)[0] == kv.STATUS_OK
    store.expire(1061.0)
    assert list(store.prefixes()) == [8]


def test_rows_of_another_model_are_refused():
    store = PlainStore(1 << 20)
    Client(store, row_bytes=(8, 8))
    assert load(store, io.BytesIO(saved()), clock) == (0, 0, "a frame was refused")


@given(st.integers(0, 1 << 20))
def test_a_torn_file_is_as_good_as_far_as_it_goes(cut):
    file = saved()
    cut %= len(file) + 1
    store = PlainStore(1 << 20)
    copied = load(store, io.BytesIO(file[:cut]), clock)
    assert sum(store.prefixes().values()) == copied.tokens <= 308
    assert (copied.tokens == 308) == (cut == len(file))


@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=200))
def test_whatever_is_in_the_file_no_wrong_row_is_taken(at, damage):
    file = saved()
    at %= len(file)
    mangled = file[:at] + damage + file[at + len(damage) :]
    store = PlainStore(1 << 20)
    if load(store, io.BytesIO(mangled), clock).requests == 0:
        return  # of no use
    reader = Client(store)
    for run in RUNS:
        have = min(store.prefixes().get(run.key, 0), run.length)
        status, _ = reader.look(run.key, NEXT)  # an attempt has no checksum, and may be newer
        if have and status == kv.STATUS_OK:
            rows = reader.fetch(run.key, 0, have, NEXT).rows
            assert rows == expected(run.key, 0, have, run.attempt)
