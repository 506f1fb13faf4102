"""What the expert loop does about AWs that die, stop, fall silent or fail over (paper §5.2)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tarragon_hpc.expert import server
from tarragon_hpc.wire import dispatch as wire
from tests.unit.expert.world import LAYERS, World, outputs, pack, post, rows, status_of

WINDOW_S = 2e-3
ACTIVE_S = 50e-3


class Clock:
    """The server's time: it stands still unless a test moves it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Practised:
    """A server whose AWs have come together for so long that it waits for aw1.

    They share its CPUs, so that only the window bounds the wait.
    """

    def __init__(self, monkeypatch):
        self.clock = Clock()
        monkeypatch.setattr(server, "time", self.clock)
        self.world = World(
            shares_cpus=True, max_window_us=int(WINDOW_S * 1e6), active_ms=int(ACTIVE_S * 1e3)
        )
        self.batches = self.world.bank.batches
        self.aws = [self.world.connect(f"aw{i}") for i in range(2)]
        self.layers = itertools.cycle(LAYERS)
        for _ in range(10 * len(LAYERS)):
            layer = next(self.layers)
            slots = [self.post(0, layer)]
            self.step(1e-4)
            slots.append(self.post(1, layer))
            self.step(1e-4)
            for aw, slot in zip(self.aws, slots, strict=True):
                assert status_of(aw, slot) == wire.STATUS_OK
                aw.release(slot)
        assert self.batches[-1] == (LAYERS[-1], [3, 3])
        self.batches.clear()

    def post(self, aw, layer, **header):
        return post(self.aws[aw], pack(rows(seed=aw), [(3, [aw])], layer=layer, **header))

    def step(self, then=0.0):
        self.world.step()
        self.clock.now += then

    def hold(self):
        """aw0's rows wait for aw1, which does not come."""
        slot = self.post(0, LAYERS[0])
        self.step()
        self.step()
        assert self.batches == []
        return slot


@pytest.fixture
def practised(monkeypatch):
    return Practised(monkeypatch)


def test_a_batch_that_waits_for_an_aw_runs_when_that_dies(practised):
    slot = practised.hold()
    practised.world.network.kill("aw1")
    practised.step()
    assert practised.batches == [(LAYERS[0], [3])]
    np.testing.assert_array_equal(outputs(practised.aws[0].reply(slot), 1), rows()[[0]] * 4 + 1)


def test_a_stopped_aw_costs_one_window_and_nothing_after_that(practised):
    slot = practised.hold()
    practised.clock.now += WINDOW_S
    practised.step()
    assert status_of(practised.aws[0], slot) == wire.STATUS_OK
    practised.aws[0].release(slot)
    for number in range(3 * len(LAYERS)):
        slot = practised.post(0, LAYERS[(number + 1) % 3])
        practised.step()  # in no time
        assert status_of(practised.aws[0], slot) == wire.STATUS_OK
        practised.aws[0].release(slot)
        practised.clock.now += 1e-4


def test_a_stopped_aw_that_goes_on_is_served(practised):
    practised.hold()
    practised.clock.now += 10 * WINDOW_S
    practised.step()
    slot = practised.post(1, LAYERS[0])
    practised.step()
    assert status_of(practised.aws[1], slot) == wire.STATUS_OK


def test_an_idle_aw_is_not_waited_for(practised):
    practised.clock.now += ACTIVE_S * 1.1
    slot = practised.post(0, LAYERS[0])
    practised.step()
    assert status_of(practised.aws[0], slot) == wire.STATUS_OK


def test_the_rows_of_a_dead_aw_leave_the_batch_that_waits(practised):
    slot = practised.post(1, LAYERS[0])
    practised.world.server._receive()
    practised.world.network.kill("aw1")
    practised.post(0, LAYERS[0])
    practised.step()
    assert practised.batches == [(LAYERS[0], [3])]
    assert practised.aws[1].reply(slot) is None


def test_an_aw_whose_place_was_filled_gets_nothing_into_a_batch(practised):
    """Not what it had sent before, not what it sends when it is let go on."""
    old = practised.aws[1]
    practised.post(1, LAYERS[0])
    practised.world.server._receive()
    late, data = old.acquire(), pack(rows(), [(3, [1])], layer=LAYERS[0])
    old.request(late)[: len(data)] = data
    new = practised.world.connect("aw1", incarnation=2)
    slot = post(new, pack(rows(seed=7), [(0, [1])], layer=LAYERS[0], incarnation=2))
    practised.step()
    old.post(late, len(data))
    stale = post(new, pack(rows(seed=7), [(0, [1])], layer=LAYERS[0], incarnation=1))
    practised.step()
    assert practised.batches == [(LAYERS[0], [0])]
    np.testing.assert_array_equal(outputs(new.reply(slot), 1), rows(seed=7)[[1]] + LAYERS[0])
    assert status_of(new, stale) == wire.STATUS_STALE


def test_replayed_rows_wait_for_nobody_and_go_before_all_that_wait(practised):
    held = practised.hold()
    other = practised.world.connect("aw2")
    replayed = pack(rows(seed=2), [(0, [2]), (4, [5])], layer=LAYERS[1], flags=wire.FLAG_REPLAY)
    slot = post(other, replayed)
    practised.step()
    assert practised.batches == [(LAYERS[1], [0, 4])]
    expected = rows(seed=2)[[2, 5]] * np.float32([[1], [5]]) + LAYERS[1]
    np.testing.assert_array_equal(outputs(other.reply(slot), 2), expected)
    assert practised.aws[0].reply(held) is None
    assert practised.world.server.stats()["batches_replay"] == 1


def test_replayed_rows_take_the_rows_of_their_layer_with_them(practised):
    held, other = practised.hold(), practised.world.connect("aw2")
    slot = post(other, pack(rows(), [(0, [2])], layer=LAYERS[0], flags=wire.FLAG_REPLAY))
    practised.step()
    assert practised.batches == [(LAYERS[0], [0, 3])]
    assert status_of(practised.aws[0], held) == wire.STATUS_OK
    assert status_of(other, slot) == wire.STATUS_OK
