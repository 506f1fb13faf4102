"""Looks and fetches, round by round."""

from __future__ import annotations

import numpy as np
import pytest

from tarragon_hpc.checkpoint.pieces import ranked
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.sizes import fetched_bytes, rows_per_reply
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv_sums import row_sum
from tests.unit.checkpoint.aw_side import FakeStore, row, token
from tests.unit.checkpoint.rounds import ROW_BYTES, Rounds

TOKEN_BYTES = sum(ROW_BYTES)


def keep(store, key, count, attempt=1):
    """Let a store have positions 0 … count-1 of a request."""
    store.attempts[key] = attempt
    for p in range(count):
        store.tokens[key, p] = token(key, p)
        for layer, nbytes in enumerate(ROW_BYTES):
            data = row(key, layer, p, nbytes)
            store.rows[key, layer, p] = (row_sum(key, layer, p, data), data)


def look(r, key=7, attempt=1):
    results = []
    r.delivery.look(key, attempt, results.append, 0.25, r.now)
    r.serve()
    return results


def test_the_store_that_has_most_is_the_best():
    r = Rounds()
    one, two = r.connect("cs0", "cs1")
    keep(one, 7, 3)
    keep(two, 7, 5)
    results = look(r)
    one.step()
    two.step()
    r.serve()
    (result,) = results
    assert [(s.worker, n) for s, n in result.holders.items()] == [("cs1", 5), ("cs0", 3)]
    assert result.tokens.tolist() == [token(7, p) for p in range(5)]
    assert result.tokens.dtype == np.uint32
    assert result.reason == ""
    assert (result.key, result.attempt) == (7, 1)


def test_among_equals_the_order_is_the_requests_own():
    r = Rounds()
    stores = r.connect("cs0", "cs1", "cs2")
    results = {}
    for key in range(6):
        for store in stores:
            keep(store, key, 2)
        results[key] = look(r, key)
        for store in stores:
            store.step()
        r.serve()
    for key, (result,) in results.items():
        assert list(result.holders) == ranked(key, r.delivery.lines)


def test_a_store_with_other_tokens_does_not_hold_the_request():
    r = Rounds()
    one, two = r.connect("cs0", "cs1")
    keep(one, 7, 3)
    keep(two, 7, 5)
    one.tokens[7, 1] = 1
    results = look(r)
    one.step()
    two.step()
    r.serve()
    assert [s.worker for s in results[0].holders] == ["cs1"]


def test_nobody_knows_it():
    r = Rounds()
    store = r.connect("cs0")
    results = look(r)
    store.step()
    r.serve()
    (result,) = results
    assert not result.holders
    assert len(result.tokens) == 0
    assert result.reason == "cs0.1: unknown"


def test_an_older_attempt_does_not_get_it():
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 3, attempt=4)
    results = look(r, attempt=3)
    store.step()
    r.serve()
    assert results[0].reason == "cs0.1: a newer attempt owns it"


def test_no_store_no_wait():
    r = Rounds()
    assert look(r)[0].reason == "no store"


def test_a_silent_store_is_waited_for_until_the_timeout():
    r = Rounds()
    r.connect("cs0")
    results = look(r)
    rest = r.serve(after=0.1)
    assert rest.on_bell
    assert not results
    r.serve(after=0.1)
    assert not results
    r.serve(after=0.06)
    assert results[0].reason == "no answer"


def test_but_only_briefly_if_another_has_it():
    r = Rounds()
    good, silent = r.connect("cs0", "cs1")
    keep(good, 7, 3)
    results = look(r)
    good.step()
    assert r.serve().until <= r.now + 0.0301
    assert not results
    r.serve(after=0.031)
    assert list(results[0].holders.values()) == [3]
    silent.step()
    r.serve()
    assert len(results) == 1, "its answer comes too late and changes nothing"


def test_a_store_that_is_being_connected_to_is_asked_too():
    r = Rounds()
    store = FakeStore(r)
    keep(store, 7, 3)
    r.delivery.want([store.peer()])
    results = look(r)
    assert not results
    r.dial()
    r.serve()
    store.step()
    r.serve()
    store.step()
    r.serve()
    assert list(results[0].holders.values()) == [3]


def test_a_look_that_is_over_is_not_posted_any_more():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    r.put()
    r.serve()
    results = look(r)
    r.serve(after=1)
    assert len(results) == 1
    store.step()
    r.serve()
    store.step()
    assert kv.LOOK not in {f.kind for f in store.frames}


def test_a_look_passes_a_long_fetch():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    keep(store, 7, 60)
    fetch(r, 0, 60)
    results = look(r)
    store.step()
    r.serve()
    store.step()
    r.serve()
    assert results[0].holders


class Sink:
    """Takes rows, checks them and notes where they came from."""

    def __init__(self):
        self.starts = []
        self.result = []

    def __call__(self, start, rows, payload, sums):
        self.starts.append((start, rows))
        given = np.frombuffer(sums, np.uint32).reshape(rows, len(ROW_BYTES))
        for r in range(rows):
            at = r * TOKEN_BYTES
            for layer, nbytes in enumerate(ROW_BYTES):
                data = bytes(payload[at : at + nbytes])
                if row_sum(7, layer, start + r, data) != given[r, layer]:
                    return False
                assert data == row(7, layer, start + r, nbytes)
                at += nbytes
        assert len(payload) == rows * TOKEN_BYTES
        return True


def fetch(r, start, stop):
    sink = Sink()
    (store,) = r.delivery.lines
    run = kv.Run(7, 1, 0, start, stop - start)
    r.delivery.fetch(store, run, sink, sink.result.append, r.now)
    r.serve()
    return sink


def test_rows_come_in_order_over_several_slots():
    r = Rounds(slots=3)
    store = r.connect("cs0")
    keep(store, 7, 60)
    sink = fetch(r, 5, 60)
    store.step()
    posted = [f for f in store.frames if f.kind == kv.FETCH]
    assert len(posted) == 3
    while not sink.result:
        r.serve(after=0.1)
        store.step()
    step = rows_per_reply(r.layout, 512)
    assert sink.starts == [(s, min(step, 60 - s)) for s in range(5, 60, step)]
    (result,) = sink.result
    assert result.ok
    assert result.reason == ""
    assert result.nbytes == 55 * TOKEN_BYTES
    assert result.seconds > 0.1
    assert r.traffic.restored_tokens == 55


def test_answers_out_of_order_are_taken_in_order(monkeypatch):
    r = Rounds(slots=3)
    store = r.connect("cs0")
    keep(store, 7, 30)
    sink = fetch(r, 0, 30)
    (channel,) = store._channels
    requests = [channel.poll() for _ in range(3)]
    for request in reversed(requests):
        answer = store.handle(request.data, channel.geometry.reply_bytes)
        channel.reply(request.slot)[: len(answer)] = answer
        channel.send(request.slot, len(answer))
        r.serve()
    assert [start for start, _ in sink.starts] == sorted(start for start, _ in sink.starts)
    assert len(sink.starts) == 3


def test_a_bad_row_ends_it_and_the_slots_can_be_used_again():
    r = Rounds(slots=2)
    store = r.connect("cs0")
    keep(store, 7, 60)
    store.spoil = {25}
    sink = fetch(r, 0, 60)
    for _ in range(6):
        store.step()
        r.serve()
    (result,) = sink.result
    assert not result.ok
    assert result.reason == "rows refused"
    assert result.nbytes == sink.starts[-1][0] * TOKEN_BYTES
    assert r.traffic.bad_fetches == 1
    asked = len([f for f in store.frames if f.kind == kv.FETCH])
    assert asked <= len(sink.starts) + 2
    store.spoil = set()
    again = fetch(r, 0, 60)
    while not again.result:
        store.step()
        r.serve()
    assert again.result[0].ok


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: s.tokens.pop((7, 50)), "the store has less than that"),
        (lambda s: setattr(s, "status", kv.STATUS_UNKNOWN), "the store has lost the request"),
        (lambda s: setattr(s, "status", kv.STATUS_STALE), "a newer attempt owns it"),
        (lambda s: setattr(s, "status", 77), "status 77"),
    ],
)
def test_refusals_end_it(spoil, reason):
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 60)
    spoil(store)
    sink = fetch(r, 48, 60)
    store.step()
    r.serve()
    (result,) = sink.result
    assert not result.ok
    assert result.reason == reason


def test_silence_ends_it_but_not_slowness():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    keep(store, 7, 60)
    sink = fetch(r, 0, 60)
    for _ in range(3):
        r.serve(after=0.4)
        store.step()
        r.serve()
    assert not sink.result
    r.serve(after=0.51)
    (result,) = sink.result
    assert result.reason == "no answer for 0.5 s"
    assert len(sink.starts) == 3


def test_so_does_the_loss_of_the_store():
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 60)
    sink = fetch(r, 0, 60)
    r.network.kill("cs0")
    r.serve()
    assert [x.reason for x in sink.result] == ["killed"]
    assert not r.delivery.lines


def test_what_arrived_before_the_loss_counts():
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 10)
    sink = fetch(r, 0, 10)
    store.step()
    r.network.kill("cs0")
    r.serve()
    assert sink.result[0].ok


def test_a_fetch_from_a_store_that_is_gone_ends_at_once():
    r = Rounds()
    r.connect("cs0")
    (store,) = r.delivery.lines
    r.delivery.want([])
    results = []
    r.delivery.fetch(store, kv.Run(7, 1, 0, 0, 3), Sink(), results.append, r.now)
    assert results[0].reason == "the store is gone"


def test_an_empty_fetch_is_complete():
    r = Rounds()
    r.connect("cs0")
    assert fetch(r, 3, 3).result[0].ok


def test_closing_ends_what_is_asked():
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 10)
    found, sink = look(r), fetch(r, 0, 10)
    r.delivery.close(r.now)
    assert found[0].reason == "cs0.1: closing"
    assert sink.result[0].reason == "closing"


def test_a_store_that_gives_too_few_rows_breaks_the_protocol():
    r = Rounds()
    store = r.connect("cs0")
    keep(store, 7, 10)
    sink = fetch(r, 0, 10)
    (channel,) = store._channels
    request = channel.poll()
    header = kv.unpack_header(request.data)
    answer = kv.pack_header(kv.Header(kv.FETCH, 0, 0, header.sequence, 0, 10, 0, 0, 100))
    channel.reply(request.slot)[: len(answer)] = answer
    channel.send(request.slot, len(answer) + 100)
    r.serve()
    assert sink.result[0].reason == "10 rows in 100 bytes"
    assert not sink.starts
    assert not r.delivery.lines


@pytest.mark.parametrize("reply_bytes", [400, 512, 1000, 4096])
def test_as_many_rows_are_asked_for_as_an_answer_holds(reply_bytes):
    layout = RowLayout(ROW_BYTES)
    rows = rows_per_reply(layout, reply_bytes)
    assert fetched_bytes(layout, rows) <= reply_bytes < fetched_bytes(layout, rows + 1)
