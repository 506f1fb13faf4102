"""The courier against real stores: a request moves from AW to AW, and nothing of it is lost."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tarragon_hpc.checkpoint.courier import Courier
from tarragon_hpc.checkpoint.server import StoreServer
from tarragon_hpc.config.schema import CheckpointConfig
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.wire import kv_sums
from tarragon_hpc.wire.common import Peer
from tests.unit.checkpoint.aw_side import SECRET, World, row, token
from tests.unit.checkpoint.test_courier import Engine

ROW_BYTES = (8, 8, 24)


class RealStore:
    """A store's process, as a thread."""

    def __init__(self, network, store, name="cs0"):
        bell = InprocDoorbell()
        listener = InprocListener(network, name, 1, SECRET, bell)
        self.name = name
        self.store = store
        self.server = StoreServer(store, listener, bell)
        self.address = listener.address()
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()

    def peer(self):
        return Peer(self.name, 1, self.address)

    def stop(self):
        self.server.stop("test")
        self.thread.join()


class Cluster:
    """AWs that know the same stores."""

    def __init__(self, *stores, **config):
        self.network = InprocNetwork()
        names = [f"cs{i}" for i in range(len(stores))]
        self.stores = [RealStore(self.network, s, n) for s, n in zip(stores, names, strict=True)]
        self.config = CheckpointConfig.model_validate(
            {"stores": max(1, len(stores)), "queue": 1 << 16, "slot_bytes": 512} | config
        )
        self.worlds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for world in self.worlds:
            world.courier.close()
        for store in self.stores:
            store.stop()

    def aw(self, name):
        """Another AW; a World of which the courier is of use."""
        world, bell = World(), InprocDoorbell()
        connector = InprocConnector(self.network, name, 1, SECRET, bell)
        world.courier = Courier(connector, bell, ROW_BYTES, self.config)
        world.courier.start()
        world.courier.set_stores([s.peer() for s in self.stores])
        world.wait(lambda: len(world.courier.stores) == len(self.stores))
        self.worlds.append(world)
        return world


def looked(world, key, attempt):
    """What the stores say of a request."""
    looks = []
    world.courier.look(key, attempt, looks.append)
    world.wait(lambda: looks)
    return looks[0]


def restored(world, key, attempt):
    """Look a request up and fetch it; returns holders and number of rows, all of them checked."""
    look, fetches, starts = looked(world, key, attempt), [], [0]
    if not look.holders:
        return look, 0
    count = len(look.tokens)
    assert look.tokens.tolist() == [token(key, p) for p in range(count)]

    def sink(start, rows, payload, sums):
        assert start == starts[0]
        starts[0] = start + rows
        keys = np.full(rows, key, np.uint64)
        positions = np.arange(start, start + rows, dtype=np.uint32)
        data, given = np.frombuffer(payload, np.uint8), np.frombuffer(sums, np.uint32)
        bad = kv_sums.bad_rows(data, ROW_BYTES, keys, positions, given, check=True)
        wanted = b"".join(row(key, i, p, n) for p in positions for i, n in enumerate(ROW_BYTES))
        return not bad.any() and bytes(payload) == wanted

    store = next(iter(look.holders))
    world.courier.fetch(key, attempt, store, 0, count, sink, fetches.append)
    world.wait(lambda: fetches)
    assert fetches[0].ok, fetches[0].reason
    return look, starts[0]


@pytest.mark.parametrize("replicas", [1, 2])
def test_requests_go_on_elsewhere_again_and_again(make_store, replicas):
    with Cluster(*(make_store(1 << 20) for _ in range(3)), replicas=replicas) as cluster:
        engine = Engine(cluster.aw("aw0"), replicas)
        engine.open(1, 2, 3, 4)
        engine.step(grow=7)
        for attempt in range(2, 6):
            for _ in range(5):
                engine.step()
            engine.courier.gate.open()
            cluster.worlds[-1].wait(engine.protected)
            ends = engine.ends
            if attempt % 2:
                cluster.network.kill(f"aw{attempt - 2}")
            world = cluster.aw(f"aw{attempt - 1}")
            engine = Engine(world, replicas)
            engine.protection.set_stores(world.courier.stores)
            for key, end in ends.items():
                look, count = restored(world, key, attempt)
                assert count == end
                assert len(look.holders) >= replicas
                engine.ends[key] = count - 1
                held = {store: min(n, count - 1) for store, n in look.holders.items()}
                engine.protection.open(key, attempt, held)
        assert set(engine.ends.values()) == {7 + 4 * 5 - 4}
        world.courier.free(1, 5)
        world.wait(lambda: not looked(world, 1, 5).holders)


def test_a_connection_that_breaks_loses_nothing(make_store):
    with Cluster(make_store(1 << 20), slots=1) as cluster:
        world = cluster.aw("aw0")
        engine = Engine(world)
        engine.open(1, 2)
        for _ in range(2):
            engine.step(grow=5)
            engine.step()
            (before,) = world.courier.stores
            cluster.network._links[-1][2].cut("a cable")
            engine.step()
            world.wait(lambda: world.courier.stores not in ((), (before,)))  # noqa: B023
        world.wait(engine.protected)
        assert restored(world, 1, 1)[1] == restored(world, 2, 1)[1] == engine.ends[1]


def test_a_store_that_is_full_keeps_some_and_says_what_it_dropped(make_store):
    with Cluster(make_store(12_000)) as cluster:
        world = cluster.aw("aw0")
        engine = Engine(world)
        engine.open(*range(1, 20))
        for _ in range(40):
            engine.step()

        def settled():
            engine.step(grow=0)
            stats = engine.protection.stats()
            gone = 19 - stats["kv_protected"]
            return 0 < gone < 19 and stats["kv_lag_tokens"] == 40 * gone

        world.wait(settled)
        kept = [key for key in range(1, 20) if restored(world, key, 1)[1] == 40]
        assert engine.protection.stats()["kv_protected"] == len(kept)


def test_what_older_attempts_send_late_changes_nothing(make_store):
    with Cluster(make_store(1 << 20)) as cluster:
        old_world = cluster.aw("aw0")
        old = Engine(old_world)
        old.open(1)
        old.step(grow=10)
        old_world.wait(old.protected)
        world = cluster.aw("aw1")
        look, count = restored(world, 1, 2)
        assert count == 10
        for _ in range(5):
            old.step()
        old_world.wait(lambda: old.step(grow=0) or old.protection.stats()["kv_protected"] == 0)
        new = Engine(world)
        new.protection.set_stores(world.courier.stores)
        new.protection.open(1, 2, dict.fromkeys(look.holders, 9))
        new.ends[1] = 9
        new.step(grow=4)
        world.wait(new.protected)
        old_world.courier.free(1, 1)
        assert restored(world, 1, 2)[1] == 13
