"""The loop against clients that behave, and against those that do not; no native code needed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.wire import dispatch as wire
from tests.unit.expert.world import (
    GEOMETRY,
    GROUPS,
    HIDDEN,
    LAYERS,
    ROWS,
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


def test_rows_come_back_through_their_experts(world):
    channel, x = world.connect(), rows()
    slot = post(channel, pack(x, GROUPS, layer=2))
    world.step()
    reply = channel.reply(slot)
    header = wire.unpack_reply_header(reply)
    assert header[:-1] == wire.ReplyHeader(0, 0, 7, 3, 5, 2, ROWS, 5, HIDDEN, 0)[:-1]
    assert len(reply) == wire.reply_bytes(5, HIDDEN, 4)
    expected = np.concatenate([x[[0, 2, 7]] * 1 + 2, x[[1, 2]] * 5 + 2])
    np.testing.assert_array_equal(outputs(reply, 5), expected)


def test_requests_of_one_layer_run_as_one_batch(world):
    first, second = world.connect("aw0"), world.connect("aw1")
    slots = post(first, pack(rows(), [(0, [1])])), post(second, pack(rows(seed=1), [(3, [2, 3])]))
    third = post(second, pack(rows(), [(0, [0])], layer=2))
    world.step(2)
    assert world.bank.batches == [(1, [0, 3]), (2, [0])]
    np.testing.assert_array_equal(outputs(first.reply(slots[0]), 1), rows()[[1]] + 1)
    np.testing.assert_array_equal(outputs(second.reply(slots[1]), 2), rows(seed=1)[2:4] * 4 + 1)
    assert status_of(second, third) == wire.STATUS_OK


def test_more_requests_than_slots(world):
    channel = world.connect()
    for i in range(3 * GEOMETRY.slots):
        slot = post(channel, pack(rows(seed=i), [(3, [i % ROWS])]))
        world.step()
        np.testing.assert_array_equal(
            outputs(channel.reply(slot), 1), rows(seed=i)[[i % ROWS]] * 4 + 1
        )
        channel.release(slot)


def test_no_pairs_are_answered(world):
    channel = world.connect()
    slot = post(channel, pack(rows(0), []))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_OK
    assert world.bank.batches == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"groups": [(0, [1]), (1, [2])]}, wire.STATUS_UNKNOWN_EXPERT),
        ({"groups": [(2**32 - 1, [1])]}, wire.STATUS_UNKNOWN_EXPERT),
        ({"incarnation": 2}, wire.STATUS_STALE),
        ({"layer": 0}, wire.STATUS_BAD_REQUEST),
        ({"layer": 2**32 - 1}, wire.STATUS_BAD_REQUEST),
        ({"hidden": HIDDEN // 2}, wire.STATUS_BAD_REQUEST),
        ({"dtype": 1}, wire.STATUS_BAD_REQUEST),
        ({"groups": [(0, [ROWS])]}, wire.STATUS_BAD_REQUEST),
        ({"groups": [(3, [0]), (0, [0])]}, wire.STATUS_BAD_REQUEST),
        ({"groups": [(0, [])]}, wire.STATUS_BAD_REQUEST),
        ({"pairs": 4}, wire.STATUS_BAD_REQUEST),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_next_is_served(change, status, world):
    channel = world.connect()
    bad = post(channel, pack(rows(), **{"groups": GROUPS, **change}))
    world.step()
    header = wire.unpack_reply_header(channel.reply(bad))
    assert (header.status, header.sequence, header.epoch) == (status, 5, 3)
    assert world.bank.batches == []
    good = post(channel, pack(rows(), GROUPS))
    world.step()
    assert status_of(channel, good) == wire.STATUS_OK
    assert world.server.stats()["refused"] == 1


def test_a_reply_that_would_not_fit_is_refused(world):
    small = Geometry(2, GEOMETRY.request_bytes, wire.reply_bytes(4, HIDDEN, 4))
    channel = world.connect(geometry=small)
    slot = post(channel, pack(rows(), GROUPS))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_BAD_REQUEST


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 10, b"GET / HTTP/1.1\r\n" * 8, b"\xff" * 200, pack(rows(), GROUPS)[:100]]
)
def test_garbage_costs_the_client_its_channel_and_nobody_else(data, world):
    rude, polite = world.connect("aw0"), world.connect("aw1")
    queued = post(rude, pack(rows(), GROUPS))
    post(rude, data)
    slot = post(polite, pack(rows(), [(4, [6])]))
    world.step(2)
    assert rude.lost is not None
    assert rude.reply(queued) is None
    np.testing.assert_array_equal(outputs(polite.reply(slot), 1), rows()[[6]] * 5 + 1)
    assert world.server.stats()["clients"] == 1


def test_a_lost_aw_takes_its_requests_with_it(world):
    channel, other = world.connect("aw0"), world.connect("aw1")
    post(channel, pack(rows(), GROUPS))
    world.server._receive()
    assert world.server.stats()["queued"] == 1
    world.network.kill("aw0")
    slot = post(other, pack(rows(), [(3, [0])]))
    world.step()
    assert world.bank.batches == [(1, [3])]
    assert status_of(other, slot) == wire.STATUS_OK
    assert world.server.stats()["clients"] == 1


@pytest.mark.parametrize("incarnation", [1, 2])
def test_an_aw_that_comes_back_replaces_the_one_before(incarnation, world):
    before = world.connect()
    post(before, pack(rows(), GROUPS))
    world.server._receive()
    after = world.connect(incarnation=incarnation)
    slot = post(after, pack(rows(), [(3, [0])], incarnation=incarnation))
    world.step(2)
    assert before.lost is not None
    assert status_of(after, slot) == wire.STATUS_OK
    assert world.bank.batches == [(1, [3])]
    assert world.server.stats()["clients"] == 1


def test_a_batch_that_fails_is_said_to_have_failed(world):
    channel = world.connect()
    world.bank.fail = True
    slot = post(channel, pack(rows(), GROUPS))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_FAILED
    assert len(channel.reply(slot)) == wire.HEADER_BYTES
    world.bank.fail = False
    channel.release(slot)
    slot = post(channel, pack(rows(), GROUPS))
    world.step()
    assert status_of(channel, slot) == wire.STATUS_OK


def test_replayed_rows_go_first(world):
    first, second = world.connect("aw0"), world.connect("aw1")
    post(first, pack(rows(), GROUPS, layer=1))
    post(second, pack(rows(), [(3, [0])], layer=2, flags=wire.FLAG_REPLAY))
    world.step()
    assert world.bank.batches == [(2, [3])]
    assert world.server.stats()["batches_replay"] == 1


def test_counters_add_up(world):
    channel = world.connect()
    for layer in LAYERS:
        post(channel, pack(rows(), GROUPS, layer=layer))
        world.step()
    stats = world.server.stats()
    assert {k: stats[k] for k in ("clients", "requests", "batches", "rows", "queued")} == {
        "clients": 1, "requests": 3, "batches": 3, "rows": 15, "queued": 0,
    }  # fmt: skip
    assert stats["rows_per_batch"] == 5
    assert stats["busy_s"] > 0
    assert stats["batches_alone"] == 3


def test_stop_ends_it_at_once(world):
    channel = world.connect()
    thread, ended = serve(world)
    ask(channel, pack(rows(), GROUPS))
    world.server.stop("shutdown", drain=False)
    thread.join(10)
    assert ended == ["shutdown"]
    assert channel.lost is not None
    assert world.network.listeners == {}


def test_drain_serves_until_the_aws_have_left(world):
    channel = world.connect()
    thread, ended = serve(world)
    ask(channel, pack(rows(), GROUPS))
    world.server.stop("drain", drain=True)
    late = world.connect("aw1")
    slot = ask(channel, pack(rows(), GROUPS, layer=2))
    assert status_of(channel, slot) == wire.STATUS_OK
    assert late.lost is not None  # nobody is let in any more
    channel.close()
    thread.join(10)
    assert ended == ["drain"]


def test_a_second_stop_hurries(world):
    world.connect()
    thread, ended = serve(world)
    world.server.stop("drain", drain=True)
    world.server.stop("shutdown", drain=False)
    thread.join(10)
    assert ended == ["drain"]


def test_two_aws_at_once_get_their_own_rows(world):
    thread, _ = serve(world)
    problems = []

    def client(number):
        channel = world.connect(f"aw{number}")
        for i in range(200):
            x, layer = rows(seed=number * 1000 + i), LAYERS[i % 3]
            slot = ask(channel, pack(x, [(3, [i % ROWS, 0])], layer=layer, sequence=i))
            if not np.array_equal(outputs(channel.reply(slot), 2), x[[i % ROWS, 0]] * 4 + layer):
                problems.append((number, i))
            channel.release(slot)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(2)]
    for c in clients:
        c.start()
    for c in clients:
        c.join()
    world.server.stop("done", drain=False)
    thread.join(10)
    assert problems == []
    assert world.server.stats()["requests"] == 400
