"""Experts that come and go between two batches of a server, and the loader that sees to it."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from tarragon_hpc.errors import ClusterError, ModelError
from tarragon_hpc.expert.loader import Loader
from tarragon_hpc.expert.weights import Footprint
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.to_head import Holding
from tarragon_hpc.wire.to_worker import Load, Unload
from tests.unit.expert.world import (
    EXPERTS,
    GROUPS,
    LAYERS,
    World,
    ask,
    outputs,
    pack,
    post,
    rows,
    serve,
    status_of,
)


@pytest.fixture
def world():
    return World()


def tensors(*experts):
    return {(layer, e): None for layer in LAYERS for e in experts}


def test_an_installed_expert_is_served_from_the_next_batch_on(world):
    channel = world.connect()
    before = post(channel, pack(rows(), [(5, [1])]))
    world.step()
    assert status_of(channel, before) == wire.STATUS_UNKNOWN_EXPERT
    done = world.server.install(tensors(5))
    assert not done.done()
    assert world.server.experts == EXPERTS
    after = post(channel, pack(rows(), [(5, [1])]))
    world.step()
    assert done.result(0) == world.server.experts == EXPERTS | {5}
    np.testing.assert_array_equal(outputs(channel.reply(after), 1), rows()[[1]] * 6 + 1)


def test_a_dropped_expert_is_refused_also_where_it_was_queued_already(world):
    channel, other = world.connect("aw0"), world.connect("aw1")
    gone = post(channel, pack(rows(), GROUPS))
    stays = post(other, pack(rows(), [(3, [2])]))
    world.server._receive()
    done = world.server.drop([4, 9])
    world.step()
    assert done.result(0) == world.server.experts == EXPERTS - {4}
    assert status_of(channel, gone) == wire.STATUS_UNKNOWN_EXPERT
    assert len(channel.reply(gone)) == wire.HEADER_BYTES
    np.testing.assert_array_equal(outputs(other.reply(stays), 1), rows()[[2]] * 4 + 1)
    late = post(other, pack(rows(), [(4, [2])]))
    world.step()
    assert status_of(other, late) == wire.STATUS_UNKNOWN_EXPERT
    assert world.server.stats()["refused"] == 2
    world.server.install(tensors(4))
    again = post(other, pack(rows(), [(4, [2])]))
    world.step()
    assert status_of(other, again) == wire.STATUS_OK


def test_a_batch_whose_calls_are_all_refused_harms_nobody(world):
    channel = world.connect()
    gone = post(channel, pack(rows(), [(4, [2])]))
    world.server._receive()
    world.server.drop([4])
    world.step()
    assert status_of(channel, gone) == wire.STATUS_UNKNOWN_EXPERT
    slot = post(channel, pack(rows(), [(3, [2])]))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_OK


def test_a_change_that_fails_leaves_everything_as_it_was(world):
    channel = world.connect()
    world.bank.full = True
    done = world.server.install(tensors(5))
    world.step()
    with pytest.raises(RuntimeError, match="no room"):
        done.result(0)
    assert world.server.experts == EXPERTS
    slot = post(channel, pack(rows(), GROUPS))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_OK


def test_changes_of_a_server_that_stops_fail_instead_of_waiting_for_ever(world):
    thread, _ = serve(world)
    world.server.stop("enough", drain=False)
    thread.join(10)
    with pytest.raises(ClusterError, match="leaving"):
        world.server.install(tensors(5)).result(0)
    with pytest.raises(ClusterError, match="leaving"):
        world.server.drop([0]).result(0)


def test_a_sleeping_server_applies_a_change_at_once(world):
    thread, _ = serve(world)
    for _ in range(50):
        assert 5 in world.server.install(tensors(5)).result(0.9)  # it would sleep for a second
        assert 5 not in world.server.drop([5]).result(0.9)
    world.server.stop("done", drain=False)
    thread.join(10)


def test_changes_while_aws_are_served(world):
    """An AW that keeps asking for what stays, while the rest comes and goes."""
    thread, _ = serve(world)
    stop, problems = threading.Event(), []

    def client():
        channel, number = world.connect(), 0
        while not stop.is_set():
            number += 1
            x, layer = rows(seed=number), LAYERS[number % 3]
            slot = ask(channel, pack(x, [(3, [number % 8])], layer=layer))
            if not np.array_equal(outputs(channel.reply(slot), 1), x[[number % 8]] * 4 + layer):
                problems.append(number)
            channel.release(slot)

    asking = threading.Thread(target=client)
    asking.start()
    for number in range(100):
        world.server.install(tensors(5, 6 + number % 4)).result(10)
        world.server.drop([5, 0, 6, 7, 8, 9]).result(10)
    stop.set()
    asking.join(10)
    world.server.stop("done", drain=False)
    thread.join(10)
    assert problems == []
    assert world.server.experts == {3, 4}


# The loader


class Reader:
    """A checkpoint with eight experts, one of which is damaged and one too large."""

    def __init__(self):
        self.loaded = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, experts):
        self.gate.wait(10)
        self.loaded.append(list(experts))
        if 6 in experts:
            raise ModelError("m: tensor 'w1' is missing")
        if 7 in experts:
            raise MemoryError
        if max(experts) > 7:
            raise ValueError(f"experts {experts} of a model with 8")
        return tensors(*experts)


@pytest.fixture
def loading(world, monkeypatch):
    """A loader of a running server: `ask` it for something and get the answer."""
    monkeypatch.setattr("tarragon_hpc.expert.loader.read_ahead", lambda tensors: None)
    monkeypatch.setattr("tarragon_hpc.expert.loader.footprint", lambda tensors: Footprint(0, 0))
    thread, _ = serve(world)
    made = Loading(world)
    yield made
    world.server.stop("done", drain=False)
    thread.join(10)


class Loading:
    def __init__(self, world):
        self.reader, self.answers = Reader(), queue.SimpleQueue()
        self.loader = Loader("ew0", 7, self.answers.put)
        self.world = world

    def start(self):
        self.loader.start(self.world.server, self.reader)

    def answer(self):
        return self.answers.get(timeout=10)


def test_orders_are_answered_in_order_also_those_from_before_the_start(loading):
    for order in (Load([5]), Load([0, 5]), Unload([3]), Load([1, 3])):
        loading.loader.put(order)
    loading.start()
    held = [[0, 3, 4, 5], [0, 3, 4, 5], [0, 4, 5], [0, 1, 3, 4, 5]]
    assert [loading.answer() for _ in held] == [Holding("ew0", 7, h) for h in held]
    assert loading.reader.loaded == [[5], [1, 3]]  # only what was not there


def test_what_is_there_is_answered_though_nothing_can_be_read(loading):
    loading.start()
    loading.reader.gate.clear()
    loading.loader.put(Load([3, 0]))
    assert loading.answer() == Holding("ew0", 7, [0, 3, 4])


@pytest.mark.parametrize(
    ("experts", "error"),
    [([1, 6], "m: tensor 'w1' is missing"), ([7], "MemoryError"), ([8], "experts [8] of a model")],
)
def test_a_load_that_fails_is_answered_with_the_reason_and_loses_nothing(loading, experts, error):
    loading.start()
    loading.loader.put(Load(experts))
    holding = loading.answer()
    assert holding.experts == [0, 3, 4]
    assert holding.error.startswith(error)
    loading.loader.put(Load([1]))
    assert loading.answer() == Holding("ew0", 7, [0, 1, 3, 4])


def test_no_room_on_the_device_is_answered_too(loading):
    loading.start()
    loading.world.bank.full = True
    loading.loader.put(Load([1]))
    assert loading.answer() == Holding("ew0", 7, [0, 3, 4], "no room")
