"""A courier's rounds, one by one, with a clock that only the test moves."""

from __future__ import annotations

import pytest

from tarragon_hpc.checkpoint.batch import make_batch
from tarragon_hpc.checkpoint.courier import geometry
from tarragon_hpc.checkpoint.delivery import Answered, Delivery
from tarragon_hpc.checkpoint.dialing import Dialer
from tarragon_hpc.checkpoint.gate import Gate
from tarragon_hpc.checkpoint.pieces import Piece
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.staging import Staging
from tarragon_hpc.checkpoint.traffic import Traffic
from tarragon_hpc.config.schema import CheckpointConfig
from tarragon_hpc.transport.inproc import InprocConnector, InprocDoorbell, InprocNetwork
from tarragon_hpc.wire import kv
from tests.unit.checkpoint.aw_side import SECRET, FakeStore, fill

ROW_BYTES = (8, 24)


class Rounds:
    """A delivery, without a thread. Connections are made at once."""

    def __init__(self, checksums=True, **config):
        self.network = InprocNetwork()
        self.layout = RowLayout(ROW_BYTES)
        self.staging = Staging(1 << 16)
        self.traffic = Traffic(lambda: self.now)
        self.wakes = 0
        self.gate = Gate(self.wake)
        self.now = 100.0
        connector = InprocConnector(self.network, "aw0", 1, SECRET, InprocDoorbell())
        config = CheckpointConfig.model_validate({"stores": 1, "slot_bytes": 512} | config)
        self.dials = []
        dialer = Dialer(
            connector,
            geometry(self.layout, config),
            lambda who, result: self.delivery.dialed(who, result, self.now),
            spawn=self.dials.append,
        )
        self.delivery = Delivery(self.layout, dialer, self.gate, self.traffic, checksums=checksums)

    def wake(self):
        self.wakes += 1

    def serve(self, after=0.0):
        self.now += after
        return self.delivery.serve(self.now)

    def dial(self):
        while self.dials:
            self.dials.pop()()

    def connect(self, *names):
        stores = [FakeStore(self, name) for name in names]
        self.delivery.want([s.peer() for s in stores])
        self.serve()
        self.dial()
        self.serve()
        for store in stores:
            store.step()
        self.serve()
        assert len(self.delivery.lines) == len(stores)
        return stores if len(stores) > 1 else stores[0]

    def put(self, key=7, start=0, length=1, stores=None):
        pieces = [Piece(s, key, 1, 0, start, length) for s in stores or self.delivery.lines]
        batch = make_batch(pieces, self.layout, self.staging, self.delivery.deliver)
        batch.commit(fill(batch))
        return batch


def puts(store):
    return [f for f in store.frames if f.kind == kv.PUT]


def test_rows_arrive_with_sums_and_tokens_and_are_answered():
    r = Rounds()
    store = r.connect("cs0")
    r.put(length=3)
    r.serve()
    assert r.staging.used == 0, "given back as soon as it is in the slot"
    store.step()
    store.check(7, range(3))
    r.serve()
    (line,) = r.delivery.lines.values()
    assert list(r.delivery.news) == [Answered(line.store, [kv.Run(7, 1, 0, 0, 3)], frozenset())]
    assert not line.busy()
    assert line.queued == -line.taken  # `handed` is the courier's business


def test_without_checksums_rows_are_marked_so():
    r = Rounds(checksums=False)
    store = r.connect("cs0")
    pieces = [Piece(s, 7, 1, 0, 0, 2) for s in r.delivery.lines]
    batch = make_batch(pieces, r.layout, r.staging, r.delivery.deliver)
    batch.absent(1)[0] = 1
    batch.commit(fill(batch))
    r.serve()
    store.step()
    assert [store.rows[7, layer, p][0] for layer in (0, 1) for p in (0, 1)] == [
        kv.SUM_NONE,
        kv.SUM_NONE,
        kv.SUM_ABSENT,
        kv.SUM_NONE,
    ]


def test_large_batches_come_in_parts_and_count_when_all_is_there():
    r = Rounds(slot_bytes=256, slots=64)
    store = r.connect("cs0")
    r.put(length=40)
    r.serve()
    store.step()
    r.serve()
    store.check(7, range(40))
    frames = puts(store)
    assert len(frames) > 8
    assert [f.flags for f in frames] == sorted(f.flags for f in frames)
    assert [f.sequence for f in store.frames] == list(range(1, len(store.frames) + 1))
    committed = [run for answer in r.delivery.news for run in answer.runs]
    assert committed[0].start == 0
    assert sum(run.length for run in committed) == 40


def test_rows_wait_while_the_gate_is_closed():
    r = Rounds()
    store = r.connect("cs0")
    r.gate.close()
    r.put()
    rest = r.serve()
    assert rest.until == pytest.approx(r.now + 0.005)
    assert not rest.on_bell
    store.step()
    assert not puts(store)
    assert r.wakes == 0
    r.gate.open()
    assert r.wakes == 1
    r.serve(after=0.001)
    store.step()
    assert len(puts(store)) == 1


def test_but_no_longer_than_5_ms_and_a_forgotten_gate_wakes_nobody():
    r = Rounds()
    store = r.connect("cs0")
    r.gate.close()
    r.put()
    r.put(start=1)
    r.serve()
    r.serve(after=0.0051)
    store.step()
    assert len(puts(store)) == 2
    r.put(start=2)
    rest = r.serve()
    store.step()
    assert len(puts(store)) == 2, "the next rows wait anew"
    assert rest.until == pytest.approx(r.now + 0.005)
    r.serve(after=0.0051)
    r.gate.open()
    assert r.wakes == 0


def test_an_open_gate_costs_no_wake():
    r = Rounds()
    r.connect("cs0")
    r.put()
    r.gate.close()
    r.gate.open()
    r.serve()
    r.gate.close()
    r.gate.open()
    assert r.wakes == 0


def test_looks_and_fetches_pass_a_closed_gate_and_waiting_rows():
    r = Rounds(slots=2)
    store = r.connect("cs0")
    r.put()
    r.serve()
    store.step()
    r.serve()
    r.gate.close()
    r.put(start=1)
    found, fetched = [], []
    r.delivery.look(7, 1, found.append, 0.25, r.now)
    (line,) = r.delivery.lines
    r.delivery.fetch(line, kv.Run(7, 1, 0, 0, 1), lambda *a: True, fetched.append, r.now)
    assert r.serve().on_bell
    store.step()
    r.serve()
    assert {f.kind for f in store.frames[2:]} == {kv.LOOK, kv.FETCH}
    assert found[0].holders == {line: 1}
    assert fetched[0].ok


def test_answers_to_rows_do_not_wake():
    r = Rounds()
    r.connect("cs0")
    r.put()
    rest = r.serve()
    assert not rest.on_bell
    assert rest.until == pytest.approx(r.now + 0.05)


def test_no_slot_does():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    r.put()
    r.put(start=1)
    assert r.serve().on_bell
    assert r.staging.used > 0
    store.step()
    assert not r.serve().on_bell
    assert r.staging.used == 0


def test_a_store_that_does_not_listen_does_not_hold_up_the_other():
    r = Rounds(slots=1)
    deaf, good = r.connect("cs0", "cs1")
    for start in range(5):
        r.put(start=start)
        r.serve()
        good.step()
        r.serve()
    assert good.committed(7) == 5
    assert not puts(deaf)


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
    assert r.delivery.news == type(r.delivery.news)()


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


def test_dropped_runs_are_told_at_once():
    r = Rounds(slot_bytes=128, slots=64)
    store = r.connect("cs0")
    store.drop = {7}
    r.put(length=4)
    r.serve()
    store.step()
    r.serve()
    assert all(answer.dropped == {7} for answer in r.delivery.news)
    assert len(r.delivery.news) == len(puts(store))


def test_refused_frames_count_as_dropped():
    r = Rounds()
    store = r.connect("cs0")
    store.status = kv.STATUS_BAD
    r.put()
    r.serve()
    store.step()
    r.serve()
    assert r.delivery.news[0].dropped == {7}


def test_free_follows_the_rows_and_many_go_in_one_frame():
    r = Rounds(slots=8)
    store = r.connect("cs0")
    r.put()
    for key in range(30):
        r.delivery.free(key, 2)
    r.serve()
    store.step()
    r.serve()
    assert [f.kind for f in store.frames] == [kv.HELLO, kv.PUT, kv.FREE, kv.FREE]
    assert store.freed == [(key, 2) for key in range(30)]


def test_frees_for_a_store_that_does_not_listen_are_bounded():
    r = Rounds(slots=1)
    store = r.connect("cs0")
    r.put()
    r.serve()
    for key in range(10_000):
        r.delivery.free(key, 1)
    while not store.freed or store.freed[-1] != (9999, 1):
        store.step()
        r.serve()
    assert len(store.freed) == 4096


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
    assert not r.delivery.news


def test_posts_are_recorded_if_wanted():
    r = Rounds()
    r.connect("cs0")
    r.traffic.record(2)
    for start in range(3):
        r.put(start=start)
    r.serve()
    assert [sent.kind for sent in r.traffic.recorded()] == [kv.PUT, kv.PUT]
    assert r.traffic.sent_bytes > sum(sent.nbytes for sent in r.traffic.recorded())
    r.traffic.record(0)
    assert r.traffic.recorded() == []
