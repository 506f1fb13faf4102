"""The courier's thread between an engine thread and stores."""

from __future__ import annotations

import threading
import time

import pytest

from tarragon_hpc.checkpoint.courier import Courier
from tarragon_hpc.checkpoint.pieces import Piece
from tarragon_hpc.checkpoint.protection import Protection
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.checkpoint.sizes import geometry
from tarragon_hpc.config.schema import CheckpointConfig
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.wire import kv
from tests.unit.checkpoint.aw_side import SECRET, FakeStore, World, fill


class Engine:
    """The engine thread's part: requests that grow by a token per step."""

    def __init__(self, world, replicas=1, catch_up=1 << 30):
        self.courier = world.courier
        layout = world.courier.layout
        self.protection = Protection(replicas, catch_up, layout.token_bytes)
        self.ends = {}
        self.full = 0  # batches that found no room
        self.longest = 0.0

    def open(self, *keys):
        for key in keys:
            self.ends[key] = 0
            self.protection.open(key, 1)

    def step(self, grow=1):
        started = time.monotonic()
        self.protection.set_stores(self.courier.stores)
        for answer in self.courier.answers():
            self.protection.answered(*answer)
        self.ends = {key: end + grow for key, end in self.ends.items()}
        pieces = self.protection.plan(self.ends.items(), started, self.courier.room())
        batch = self.courier.begin(pieces) if pieces else None
        if batch is not None:
            batch.commit(fill(batch))
        elif pieces:
            self.full += 1
            self.protection.skipped(pieces)
        self.longest = max(self.longest, time.monotonic() - started)

    def protected(self):
        """Take the news; whether everything is committed."""
        self.step(grow=0)
        return self.protection.stats()["kv_lag_tokens"] == 0


def test_what_is_computed_is_kept_and_comes_back():
    with World() as world:
        store = world.serve("cs0")
        engine = Engine(world)
        engine.open(1, 2, 3)
        engine.step(grow=20)
        for _ in range(10):
            engine.step()
        world.wait(engine.protected)
        for key in (1, 2, 3):
            assert store.committed(key) == 30
            store.check(key, range(30))
        looks, fetches, starts = [], [], []
        world.courier.look(2, 2, looks.append)
        world.wait(lambda: looks)
        (holder,) = looks[0].holders
        sink = lambda start, rows, payload, sums: starts.append(start) or True  # noqa: E731
        world.courier.fetch(2, 2, holder, 0, 30, sink, fetches.append)
        world.wait(lambda: fetches)
        assert fetches[0].ok
        assert starts == sorted(starts)
        stats = world.courier.stats()
        assert stats["kv_restored_tokens"] == 30
        assert stats["kv_queue_bytes"] == stats["kv_bad_rows"] == 0
        assert stats["kv_sent_bytes"] > 90 * world.courier.layout.token_bytes
        world.courier.free(2, 2)
        world.wait(lambda: store.freed == [(2, 2)])


def test_a_stopped_store_holds_up_nothing_and_catches_up_later():
    with World(slots=2, queue=1 << 14) as world:
        store = world.serve("cs0")
        engine = Engine(world)
        engine.open(1, 2)
        engine.step()
        world.wait(engine.protected)
        store.stop()
        for _ in range(300):
            engine.step()
            assert world.courier.staging.used <= 1 << 14
        assert engine.longest < 0.2
        assert engine.protection.stats()["kv_skipped_rows"] > 100
        assert engine.protection.stats()["kv_lag_tokens"] > 500
        store.start()
        world.wait(engine.protected)
        for key in (1, 2):
            store.check(key, range(301))
        assert world.courier.staging.used == 0


def test_a_full_queue_takes_nothing():
    with World(slots=1, queue=2048) as world:
        store = world.serve("cs0")
        world.wait(lambda: not world.courier._delivery.lines[world.courier.stores[0]].busy())
        store.stop()
        (who,) = world.courier.stores
        piece = Piece(who, 1, 1, 0, 0, 10)
        batches = [world.courier.begin([piece._replace(start=10 * i)]) for i in range(6)]
        assert batches[-1] is None
        kept = [b for b in batches if b is not None]
        for batch in kept:
            batch.commit(fill(batch))
        assert world.courier.begin([piece]) is None
        store.start()
        world.wait(lambda: world.courier.staging.used == 0)
        assert world.courier.room()[who] > 0
        world.wait(lambda: store.committed(1) == 10 * len(kept))


def test_a_store_lost_in_the_middle_is_replaced_by_another():
    with World(slots=1) as world:
        first = world.serve("cs0")
        engine = Engine(world)
        engine.open(1)
        for _ in range(5):
            engine.step()
        first.stop()
        engine.step()
        engine.step()
        world.network.kill("cs0")
        world.stores.remove(first)
        world.wait(lambda: not world.courier.stores)
        world.wait(lambda: world.courier.staging.used == 0)
        engine.step()
        second = world.serve("cs1")
        world.wait(engine.protected)
        second.check(1, range(8))


def test_both_replicas_get_everything_and_one_does_not_wait_for_the_other():
    with World(slots=1, replicas=2, stores=2, queue=1 << 13) as world:
        good = world.serve("cs0")
        deaf = world.serve("cs1")
        engine = Engine(world, replicas=2)
        engine.open(1)
        engine.step()
        world.wait(lambda: good.committed(1) == deaf.committed(1) == 1)
        deaf.stop()
        for _ in range(100):
            engine.step()
            world.wait(lambda: good.committed(1) > engine.ends[1] - 20)
        world.wait(lambda: engine.protected() and good.committed(1) == 101)
        deaf.start()
        world.wait(lambda: engine.step(grow=0) or deaf.committed(1) == 101)
        deaf.check(1, range(101))
        good.check(1, range(101))


def test_a_refused_request_is_left_alone():
    with World() as world:
        store = world.serve("cs0")
        store.drop = {1}
        engine = Engine(world)
        engine.open(1, 2)
        for _ in range(5):
            engine.step()
            time.sleep(0.01)
        world.wait(lambda: engine.step() or store.committed(2) > 10)
        assert engine.protection.stats()["kv_protected"] == 1
        assert store.committed(1) < 5


def test_an_open_gate_lets_waiting_rows_out_at_once():
    with World() as world:
        store = world.serve("cs0")
        engine = Engine(world)
        engine.open(1)
        gate = world.courier.gate
        for _ in range(50):
            gate.close()
            engine.step()
            gate.open()
        world.wait(engine.protected)
        store.check(1, range(50))


def test_a_gate_that_stays_closed_delays_rows_a_little():
    with World() as world:
        store = world.serve("cs0")
        engine = Engine(world)
        engine.open(1)
        world.courier.gate.close()
        started = time.monotonic()
        engine.step()
        world.wait(lambda: store.committed(1) == 1)
        assert time.monotonic() - started > 0.005


def test_the_courier_sleeps_when_there_is_nothing_to_do():
    with World() as world:
        world.serve("cs0")
        engine = Engine(world)
        engine.open(1)
        engine.step()
        world.wait(engine.protected)
        rounds = []
        round_of = world.courier._round
        world.courier._round = lambda: rounds.append(1) or round_of()
        time.sleep(1.1)
        assert len(rounds) <= 8
        rounds.clear()
        for _ in range(20):
            engine.step()
            time.sleep(0.01)
        assert len(rounds) <= 20 + 5


def test_a_bug_in_the_courier_is_a_bug_of_the_engine(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))
    with World() as world:
        world.serve("cs0")
        looks = []

        def fails(*_):
            raise ZeroDivisionError

        world.courier.look(7, 1, fails)
        world.wait(lambda: seen)
        with pytest.raises(RuntimeError, match="courier's thread has died"):
            world.courier.room()
        assert isinstance(seen[0], ZeroDivisionError)
        assert not looks


def test_close_ends_what_is_asked():
    world = World()
    found = []
    with world:
        store = world.serve("cs0")
        store.stop()
        world.courier.look(7, 1, found.append, timeout_s=60)
    assert len(found) == 1
    assert not found[0].holders
    store.start()


def test_a_queue_that_holds_no_row_is_an_error():
    with pytest.raises(ConfigError, match="checkpoint.queue: 4000 bytes; this model needs"):
        World((1000,) * 4, queue=4000)


@pytest.mark.parametrize(("slot_bytes", "slots"), [(64, 1), (1 << 20, 8)])
def test_a_message_has_room_for_one_token(slot_bytes, slots):
    layout = RowLayout([100] * 32)
    config = CheckpointConfig(stores=1, slot_bytes=slot_bytes, slots=slots)
    made = geometry(layout, config)
    assert made.slots == slots
    assert made.request_bytes >= max(slot_bytes, kv.put_payload(1, 1, 32, commit=True) + 3200)
    assert made.reply_bytes >= max(slot_bytes, kv.fetch_payload(1, 32) + 3200)


@pytest.mark.native
def test_over_shared_memory(tmp_path):
    world = World()
    store_bell, bell = ProcessDoorbell(0), ProcessDoorbell(0)
    store = FakeStore(world)
    store.bell = store_bell
    store._listener = ShmListener(str(tmp_path), "cs0", 1, SECRET, store_bell)
    config = CheckpointConfig(stores=1, queue=1 << 16, slot_bytes=1024)
    world.courier = Courier(ShmConnector("aw0", 1, SECRET, bell), bell, (8, 8, 24), config)
    world.stores = [store.start()]
    with world:
        world.courier.set_stores([store.peer()])
        world.wait(lambda: world.courier.stores)
        engine = Engine(world)
        engine.open(1, 2)
        engine.step(grow=50)
        for _ in range(20):
            engine.step()
        world.wait(engine.protected)
        store.check(1, range(70))
        looks = []
        world.courier.look(1, 2, looks.append)
        world.wait(lambda: looks)
        assert list(looks[0].holders.values()) == [70]
    store._listener.close()
    store_bell.close()
    bell.close()
