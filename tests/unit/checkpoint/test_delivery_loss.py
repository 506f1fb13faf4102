"""Stores that are deaf, lost, refuse or break the protocol, round by round."""

from __future__ import annotations

import pytest

from tarragon_hpc.checkpoint.pieces import Answered
from tarragon_hpc.wire import kv
from tests.unit.checkpoint.aw_side import FakeStore
from tests.unit.checkpoint.rounds import Rounds, puts


def test_rows_that_a_deaf_store_does_not_take_are_dropped():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    (line,) = r.delivery.lines.values()
    r.put()
    r.put(start=1)
    r.delivery.free(3, 1)
    r.put(start=2)
    r.put(start=3)
    r.serve()
    r.serve(after=0.24)
    assert r.staging.used
    assert not line.deaf(r.now)
    r.serve(after=0.02)
    assert line.deaf(r.now)
    assert not r.staging.used
    runs = [kv.Run(7, 1, 0, start, 1) for start in (1, 2, 3)]
    assert list(r.delivery.news) == [(1, Answered(line.store, runs, unsent=True))]
    store.step()
    r.serve()
    assert not line.deaf(r.now)
    store.step()
    r.serve()
    assert store.freed == [(3, 1)]


def test_rows_planned_before_the_engine_knows_of_it_are_dropped_too():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    (line,) = r.delivery.lines.values()
    r.put()
    r.put(start=1)
    r.serve()
    r.serve(after=0.3)
    store.step()
    r.put(start=2, heeded=0)
    r.serve()
    assert Answered(line.store, [kv.Run(7, 1, 0, 2, 1)], unsent=True) in r.news
    assert line.queued == 0
    assert r.staging.used == 0
    r.put(start=1, length=3, heeded=1)
    r.serve()
    store.step()
    store.check(7, range(4))


def test_a_long_pause_makes_no_store_deaf():
    r = Rounds()
    store = r.connect("cs0")
    (line,) = r.delivery.lines.values()
    r.put()
    r.serve(after=100)
    assert not line.deaf(r.now)
    store.step()
    r.serve(after=0.1)
    assert not line.deaf(r.now + 100)


def test_rows_for_a_store_that_went_are_dropped():
    r = Rounds()
    store = r.connect("cs0")
    (line,) = r.delivery.lines
    r.delivery.want([])
    r.put(stores=[line])
    assert r.staging.used == 0
    r.serve()
    store.step()
    assert not puts(store)


@pytest.mark.parametrize("how", ["killed", "unwanted"])
def test_what_waits_for_a_lost_store_is_let_go(how):
    r = Rounds(slots=1)
    r.connect("cs0")
    r.put()
    r.put(start=1)
    r.serve()
    results = []
    r.delivery.look(7, 1, results.append, 0.25, r.now)
    r.serve()
    if how == "killed":
        r.network.kill("cs0")
    else:
        r.delivery.want([])
    r.serve()
    assert r.staging.used == 0
    assert not r.delivery.lines
    assert len(results) == 1
    assert not results[0].holders
    assert r.news == []


def test_a_lost_store_is_dialed_again_later_as_a_new_one():
    r = Rounds()
    store = r.connect("cs0")
    (before,) = r.delivery.lines
    r.network._links[0][2].cut("a cable")
    assert r.serve().until <= r.now + 1
    r.serve(after=0.9)
    assert not r.dials
    r.serve(after=0.2)
    r.dial()
    r.serve()
    store.step()
    r.serve()
    (after,) = r.delivery.lines
    assert after == before._replace(link=before.link + 1)


def test_one_that_cannot_be_reached_is_dialed_now_and_then():
    r = Rounds()
    store = FakeStore(r)
    peer = store.peer()
    store._listener.close()
    r.delivery.want([peer])
    r.serve()
    assert len(r.dials) == 1
    r.serve()
    assert len(r.dials) == 1, "one at a time"
    r.dial()
    r.serve(after=0.5)
    assert not r.dials
    r.serve(after=0.6)
    assert len(r.dials) == 1


def test_one_that_keeps_other_rows_is_left_alone():
    r = Rounds()
    store = FakeStore(r)
    store.hello = kv.STATUS_BAD
    r.delivery.want([store.peer()])
    r.serve()
    r.dial()
    r.serve()
    store.step()
    r.serve()
    r.serve(after=100)
    assert not r.dials
    assert not r.delivery.lines


def test_a_connection_that_is_not_wanted_any_more_is_closed():
    r = Rounds()
    store = FakeStore(r)
    r.delivery.want([store.peer()])
    r.serve()
    r.delivery.want([])
    r.dial()
    (channel,) = store._listener.accepted()
    assert channel.lost


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: header._replace(sequence=9),
        lambda header: header._replace(kind=kv.FETCH),
        lambda header: header._replace(body=1 << 40),
        lambda header: header._replace(runs=1 << 20),
    ],
)
def test_a_store_that_breaks_the_protocol_is_cut_off(spoil, monkeypatch):
    r = Rounds()
    store = r.connect("cs0")
    answer = store.handle

    def handle(frame, reply_bytes):
        good = answer(frame, reply_bytes)
        header = kv.Header(*kv._HEADER.unpack_from(good)[1:9], 0)
        return kv.pack_header(spoil(header)) + good[kv.HEADER_BYTES :]

    monkeypatch.setattr(store, "handle", handle)
    r.put()
    r.serve()
    store.step()
    r.serve()
    assert not r.delivery.lines
    assert not r.news
