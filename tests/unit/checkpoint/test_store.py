"""What a store keeps and gives back; both implementations."""

from __future__ import annotations

import pytest

from tarragon_hpc.checkpoint.plain_requests import page_bytes
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv import Run
from tarragon_hpc.wire.kv_sums import row_sum
from tests.unit.checkpoint.frames import ROW_BYTES, Client, ask, hello, put, row_of, token_of

LAYERS = len(ROW_BYTES)
PAGE = page_bytes(ROW_BYTES, 16)
A, B, C = 1 << 63, 7, 9


@pytest.fixture
def store(make_store):
    return make_store(100 * PAGE)


def expected(key, start, length, attempt=1):
    rows = []
    for p in range(start, start + length):
        data = [row_of(key, layer, p, attempt) for layer in range(LAYERS)]
        rows.append([(row_sum(key, layer, p, d), d) for layer, d in enumerate(data)])
    return rows


def test_the_checksum_is_crc_32c():
    assert row_sum(0, 0, 0, bytes(16)) == 0x8A9136AA  # of 32 zeros: RFC 3720 B.4


def test_rows_come_back_as_they_were(store):
    client = Client(store)
    assert client.put(Run(A, 1, 0, 0, 20)) == []
    assert client.put(Run(A, 1, 0, 20, 30)) == []
    assert store.prefixes() == {A: 50}
    status, tokens = client.look(A)
    assert (status, tokens) == (kv.STATUS_OK, [token_of(p) for p in range(50)])
    for start, length in ((0, 50), (0, 1), (15, 2), (49, 1), (16, 16), (3, 44)):
        header, rows = client.fetch(A, start, length)
        assert header.status == kv.STATUS_OK
        assert rows == expected(A, start, length)


def test_requests_of_one_frame_are_kept_apart(store):
    client = Client(store)
    assert client.put(Run(A, 1, 0, 0, 3), Run(B, 4, 0, 0, 18), Run(A, 1, 0, 3, 2)) == []
    assert client.fetch(A, 0, 5).rows == expected(A, 0, 5)
    assert client.fetch(B, 0, 18, attempt=4).rows == expected(B, 0, 18, attempt=4)


def test_a_step_in_several_frames_is_committed_with_the_last_one(store):
    client = Client(store)
    run = Run(A, 1, 0, 0, 4)
    client.put(run, first=0, layers=2, commit=False)
    assert client.look(A) == (kv.STATUS_OK, [])
    assert client.fetch(A, 0, 1).header.status == kv.STATUS_SHORT
    client.put(run, first=2, layers=0, commit=True)
    assert store.prefixes() == {A: 0}
    client.put(run, first=2, layers=1, commit=False)
    assert store.prefixes() == {A: 4}
    assert client.fetch(A, 0, 5).header.status == kv.STATUS_SHORT
    assert client.fetch(A, 0, 4).rows == expected(A, 0, 4)


def test_holes_and_strangers_are_dropped_and_told(store):
    client = Client(store)
    client.put(Run(A, 1, 0, 0, 4))
    assert client.put(Run(A, 1, 0, 5, 1), Run(B, 1, 0, 1, 1), Run(A, 1, 0, 4, 1)) == [A, B]
    assert store.prefixes() == {A: 5}
    assert store.stats()["kv_dropped_runs"] == 2
    assert client.put(Run(A, 1, 0, 2, 9)) == []  # known ones among them
    assert client.fetch(A, 0, 11).rows == expected(A, 0, 11)


def test_a_corrupt_row_ends_its_run_in_that_layer(store):
    client = Client(store)

    def broken(run, layer, p):
        row = row_of(run.key, layer, p)
        return bytes([row[0] ^ 1]) + row[1:] if (run.key, layer, p) == (A, 1, 5) else row

    def good(run, layer, p, data):
        return row_sum(run.key, layer, p, row_of(run.key, layer, p))

    assert client.put(Run(A, 1, 0, 0, 9), Run(B, 1, 0, 0, 2), row=broken, sums=good) == [A]
    assert store.prefixes() == {A: 5, B: 2}
    assert store.stats()["kv_bad_rows"] == 1
    assert client.fetch(A, 0, 5).rows == expected(A, 0, 5)
    assert client.put(Run(A, 1, 0, 5, 4)) == []
    assert client.fetch(A, 0, 9).rows == expected(A, 0, 9)


@pytest.mark.parametrize("change", [{"key": C}, {"position": 1}, {"layer": 1}])
def test_a_row_in_the_wrong_place_is_corrupt(change, store):
    client = Client(store)

    def sums(run, layer, p, data):
        place = {"key": run.key, "layer": layer, "position": p} | change
        return row_sum(place["key"], place["layer"], place["position"], data)

    assert client.put(Run(A, 1, 0, 0, 1), layers=1, sums=sums) == [A]
    assert store.stats()["kv_bad_rows"] == 1


def test_absent_rows_are_zeros_and_count(store):
    client = Client(store)
    absent = lambda run, layer, p, data: (  # noqa: E731
        kv.SUM_ABSENT if layer == 1 and p < 3 else row_sum(run.key, layer, p, data)
    )
    assert client.put(Run(A, 1, 0, 0, 5), sums=absent) == []
    rows = expected(A, 0, 5)
    for p in range(3):
        rows[p][1] = (kv.SUM_ABSENT, bytes(ROW_BYTES[1]))
    assert client.fetch(A, 0, 5).rows == rows


def test_rows_without_sums_are_bad_unless_checks_are_off(make_store):
    checked, unchecked = Client(make_store(10 * PAGE)), Client(make_store(10 * PAGE, check=False))
    none = lambda run, layer, p, data: kv.SUM_NONE  # noqa: E731
    assert checked.put(Run(A, 1, 0, 0, 5), sums=none) == [A]
    assert checked.store.prefixes() == {A: 0}
    assert unchecked.put(Run(A, 1, 0, 0, 5), sums=none) == []
    (first, *_), *_ = unchecked.fetch(A, 0, 5).rows
    assert first == (kv.SUM_NONE, row_of(A, 0, 0))
    wrong = lambda run, layer, p, data: 12345  # noqa: E731
    assert unchecked.put(Run(B, 1, 0, 0, 1), sums=wrong) == []
    assert unchecked.fetch(B, 0, 1).rows[0][2] == (12345, row_of(B, 2, 0))


def test_a_newer_attempt_takes_over_and_the_older_is_out(store):
    old, new = Client(store, 1), Client(store, 2)
    old.put(Run(A, 1, 0, 0, 20))
    assert new.look(A, attempt=2)[1] == [token_of(p) for p in range(20)]
    assert old.put(Run(A, 1, 0, 20, 1)) == [A]
    assert old.look(A) == (kv.STATUS_STALE, [])
    assert old.fetch(A, 0, 1).header.status == kv.STATUS_STALE
    old.free(Run(A, 1, 0, 0, 0))
    assert new.fetch(A, 0, 20, attempt=2).rows == expected(A, 0, 20)
    assert new.fetch(A, 0, 20, attempt=3).header.status == kv.STATUS_STALE
    assert new.put(Run(A, 2, 19, 19, 2)) == []
    assert new.fetch(A, 0, 21, attempt=2).rows == expected(A, 0, 19) + expected(A, 19, 2, 2)
    assert new.look(A, 2)[1][18:] == [token_of(18), token_of(19, 2), token_of(20, 2)]


def test_a_newer_attempt_may_write_without_asking(store):
    old, new = Client(store, 1), Client(store, 2)
    old.put(Run(A, 1, 0, 0, 40))
    used = store.stats()["kv_used_bytes"]
    assert new.put(Run(A, 3, 5, 7, 1)) == [A]  # the base counts, the run leaves a hole
    assert store.prefixes() == {A: 5}
    assert (used, store.stats()["kv_used_bytes"]) == (3 * PAGE, PAGE)
    assert old.put(Run(A, 1, 0, 5, 1)) == [A]


def test_free_forgets_what_is_ones_own(store):
    client = Client(store)
    client.put(Run(A, 2, 0, 0, 20), Run(B, 1, 0, 0, 1), Run(C, 1, 0, 0, 1))
    client.free(Run(A, 1, 0, 0, 0), Run(B, 1, 0, 0, 0), Run(C, 2, 0, 0, 0), Run(5, 1, 0, 0, 0))
    assert store.prefixes() == {A: 20}
    client.free(Run(A, 2, 0, 0, 0))
    assert store.stats()["kv_used_bytes"] == 0
    assert client.look(A) == (kv.STATUS_UNKNOWN, [])
    assert client.fetch(A, 0, 1).header.status == kv.STATUS_UNKNOWN
    assert client.put(Run(A, 1, 0, 0, 3)) == []
    assert client.fetch(A, 0, 3).rows == expected(A, 0, 3)


def test_what_a_lost_client_wrote_waits_a_minute_for_another(store):
    lost, other = Client(store, 1), Client(store, 2)
    lost.put(Run(A, 1, 0, 0, 3), Run(B, 1, 0, 0, 3), Run(C, 1, 0, 0, 3))
    other.put(Run(C, 1, 0, 3, 1))  # is its own now
    store.client_lost(1, 100.0)
    assert lost.status(put(lost.next(), [Run(A, 1, 0, 3, 1)])) == kv.STATUS_BAD
    store.expire(160.0)
    assert set(store.prefixes()) == {A, B, C}
    assert other.look(A, attempt=2)[0] == kv.STATUS_OK
    store.expire(160.1)
    assert set(store.prefixes()) == {A, C}
    store.client_lost(2, 200.0)
    late = Client(store, 3)
    late.now = 300.0
    assert late.look(A, attempt=3) == (kv.STATUS_UNKNOWN, [])
    assert store.stats()["kv_requests"] == 0


def test_a_frame_that_comes_twice_does_nothing_the_second_time(store):
    client = Client(store)
    first = put(client.next(), [Run(A, 1, 0, 0, 3)])
    client.send(first)
    client.free(Run(A, 1, 0, 0, 0))
    received = store.stats()["kv_received_bytes"]
    assert client.status(first) == kv.STATUS_OK
    assert store.prefixes() == {}
    assert store.stats()["kv_received_bytes"] == received == len(first)


def test_answers_hold_what_fits(store):
    client = Client(store)
    client.put(Run(A, 1, 0, 0, 20))
    record = sum(ROW_BYTES)
    narrow = Client(store, 2, room=kv.fetch_payload(2, LAYERS) + 2 * record + record - 1)
    header, rows = narrow.fetch(A, 4, 16)
    assert (header.rows, rows) == (2, expected(A, 4, 2))
    narrow = Client(store, 3, room=kv.HEADER_BYTES + 4 * 7 + 3)
    assert narrow.look(A)[1] == [token_of(p) for p in range(7)]
    assert narrow.put(*(Run(key, 1, 0, 5, 1) for key in range(20, 30))) == [20, 21, 22]
    frame = ask(kv.FETCH, narrow.next(), Run(A, 1, 0, 0, 1))
    assert narrow.status(frame) == kv.STATUS_BAD  # not a single token would fit
    assert store.handle(1, memoryview(frame), memoryview(bytearray(47)), 0.0) == 0


def test_nobody_is_served_before_hello_nor_after_another_one(store):
    buffer = bytearray(1000)
    for frame in (put(1, [Run(A, 1, 0, 0, 1)]), ask(kv.LOOK, 2, Run(A, 1, 0, 0, 0))):
        n = store.handle(5, memoryview(frame), memoryview(buffer), 0.0)
        assert kv.unpack_header(buffer[:n]).status == kv.STATUS_BAD
    client, other = Client(store, 1), Client(store, 2)
    assert client.status(hello(sequence=client.next())) == kv.STATUS_OK
    for table in ((8, 12), (8, 12, 21), (8, 12, 20, 4)):
        assert client.status(hello(table, client.next())) == kv.STATUS_BAD
    assert client.status(hello(sequence=client.next())) == kv.STATUS_BAD
    assert client.status(put(client.next(), [Run(A, 1, 0, 0, 1)])) == kv.STATUS_BAD
    assert other.put(Run(A, 1, 0, 0, 1)) == []


@pytest.mark.parametrize("table", [(), (0,), (8, 0), (1 << 31, 1 << 31)])
def test_a_hello_that_cannot_be_is_bad_and_binds_nobody(table, store):
    frame, buffer = hello(table), bytearray(100)
    n = store.handle(9, memoryview(frame), memoryview(buffer), 0.0)
    assert kv.unpack_header(buffer[:n]).status == kv.STATUS_BAD
    assert Client(store, 9).put(Run(A, 1, 0, 0, 1)) == []


@pytest.mark.parametrize(("argument", "value"), [("memory", 0), ("page_tokens", 0)])
def test_a_store_of_nothing_cannot_be_made(argument, value, make_store):
    with pytest.raises(ValueError, match=argument):
        make_store(**{"memory": 1000, argument: value})


@pytest.mark.native
def test_more_memory_than_there_can_be_is_an_error():
    from tarragon_hpc import native

    with pytest.raises(MemoryError):
        native.module.KvStore(1 << 62)
