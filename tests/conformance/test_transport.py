"""What every transport does, whatever it is made of (the contract: transport/base.py)."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tarragon_hpc.transport.base import Geometry
from tests.conformance.pairs import SMALL, SOON, Pair, answer, ask, first, until


def test_both_ends_know_each_other(pair):
    assert (pair.client.peer, pair.client.peer_incarnation) == ("ew0", 1)
    assert (pair.server.peer, pair.server.peer_incarnation) == ("aw0", 1)
    assert pair.client.geometry == pair.server.geometry == SMALL
    assert pair.client.lost is None
    assert pair.server.lost is None
    assert pair.server.poll() is None


def test_requests_come_in_order_and_wrap_around(pair):
    for n in range(0, 3 * SMALL.slots, 2):
        slots = [ask(pair.client, b"request %d" % m) for m in (n, n + 1)]
        assert slots == [n % SMALL.slots, (n + 1) % SMALL.slots]
        for m, slot in zip((n, n + 1), slots, strict=True):
            request = pair.take()
            assert (request.slot, bytes(request.data)) == (slot, b"request %d" % m)
            answer(pair.server, request, b"reply %d" % m)
            assert bytes(pair.got(slot)) == b"reply %d" % m
            pair.client.release(slot)
    assert pair.server.poll() is None


def test_no_free_slot_means_none_until_one_is_released(pair):
    slots = [ask(pair.client, b"x") for _ in range(SMALL.slots)]
    assert pair.client.acquire() is None
    requests = [pair.take() for _ in slots]
    answer(pair.server, requests[1], b"second")
    assert bytes(pair.got(1)) == b"second"
    pair.client.release(1)
    assert pair.client.acquire() is None  # slots are used in order; the first is still owed
    answer(pair.server, requests[0], b"first")
    assert bytes(pair.got(0)) == b"first"
    assert pair.client.acquire() is None  # there, but not released
    pair.client.release(0)
    assert [pair.client.acquire(), pair.client.acquire(), pair.client.acquire()] == [0, 1, None]


def test_replies_may_come_in_any_order(pair):
    slots = [ask(pair.client, b"%d" % n) for n in range(SMALL.slots)]
    requests = [pair.take() for _ in slots]
    for request in reversed(requests):
        answer(pair.server, request, b"to " + bytes(request.data))
        pair.got(request.slot)
        waiting = [s for s in slots if pair.client.reply(s) is None]
        assert waiting == slots[: request.slot]
    assert [bytes(pair.client.reply(s)) for s in slots] == [b"to %d" % n for n in range(4)]


def test_buffers_have_the_agreed_size_and_the_receiver_cannot_write(pair):
    slot = pair.client.acquire()
    assert len(pair.client.request(slot)) == SMALL.request_bytes
    pair.client.post(slot, SMALL.request_bytes)
    request = pair.take()
    assert len(request.data) == SMALL.request_bytes
    assert request.data.readonly
    assert len(pair.server.reply(slot)) == SMALL.reply_bytes
    pair.server.send(slot, 0)
    assert len(pair.got(slot)) == 0
    assert pair.client.reply(slot).readonly


def test_large_slots_arrive_whole(world):
    size = world.large + 3
    pair = Pair(world, Geometry(2, size, size + 64))
    data = np.random.default_rng(0).bytes(size)
    for _ in range(3):
        slot = ask(pair.client, data)
        request = pair.take()
        assert request.data == data
        answer(pair.server, request, data[::-1] + b"t" * 64)
        assert pair.got(slot) == data[::-1] + b"t" * 64
        pair.client.release(slot)


def test_nobody_waits_for_a_peer_that_does_not_look(world):
    """Large messages both ways, none of them read before all are sent."""
    size = world.large // 2
    pair = Pair(world, Geometry(4, size, size))
    begin = time.monotonic()
    slots = [ask(pair.client, bytes([n]) * size) for n in range(4)]
    assert pair.client.acquire() is None
    requests = [pair.take() for _ in slots]
    for request in requests:
        answer(pair.server, request, bytes([request.data[-1] + 16]) * size)
    assert time.monotonic() - begin < SOON / 4
    assert [pair.got(slot)[-1] for slot in slots] == [16, 17, 18, 19]
    for slot in slots:
        pair.client.release(slot)
    assert ask(pair.client, b"again") == 0
    assert bytes(pair.take().data) == b"again"


def test_longer_than_the_slot_is_the_callers_mistake(pair):
    slot = pair.client.acquire()
    with pytest.raises(ValueError, match="longer than"):
        pair.client.post(slot, SMALL.request_bytes + 1)


def test_impossible_transitions_raise_with_their_story(pair):
    with pytest.raises(RuntimeError, match="post of slot 0, which is free"):
        pair.client.post(0, 1)
    slot = ask(pair.client, b"x")
    with pytest.raises(RuntimeError, match="release of slot 0, which is posted"):
        pair.client.release(slot)
    with pytest.raises(RuntimeError, match="send of slot 0, which owes no reply"):
        pair.server.send(0, 1)
    request = pair.take()
    answer(pair.server, request, b"x")
    with pytest.raises(RuntimeError, match="send of slot 0, which owes no reply"):
        pair.server.send(0, 1)
    with pytest.raises(IndexError):
        pair.client.post(SMALL.slots, 1)


def test_a_bell_counts_rings_and_wakes_the_waiter(world):
    bell = world.bell()
    seen = bell.value()
    assert bell.wait(seen, 0.001) == seen
    bell.ring()
    assert bell.value() == seen + 1
    assert bell.wait(seen, SOON) == seen + 1  # rung before the wait: at once
    ringer = threading.Timer(0.01, bell.ring)
    ringer.start()
    begin = time.monotonic()
    assert bell.wait(seen + 1, SOON) == seen + 2
    assert time.monotonic() - begin < SOON
    ringer.join()


def test_one_bell_tells_of_everything(world):
    pair = Pair(world)
    others = [pair.join(f"aw{n}") for n in (1, 2)]
    servers = [pair.server, *(s for _, s in others)]
    for n, client in enumerate([pair.client, *(c for c, _ in others)]):
        slot = ask(client, b"from %d" % n)
        request = until(pair.server_bell, servers[n].poll)
        assert [s.poll() for s in servers] == [None] * 3
        answer(servers[n], request, b"ok")
        assert until(pair.client_bell, lambda: client.reply(slot)) == b"ok"  # noqa: B023
    seen = pair.server_bell.value()
    others[1][0].close()
    assert until(pair.server_bell, lambda: servers[2].lost)
    assert pair.server_bell.value() != seen
    assert servers[0].lost is None
    assert servers[1].lost is None


def test_both_directions_at_once_under_load(world):
    pair = Pair(world, Geometry(4, 4096, 4096))
    back, back_bell = [], []

    def serve(n, server, bell):
        served = 0
        while served < n:
            seen = bell.value()
            request = server.poll()
            if request is None:
                bell.wait(seen, SOON)
                continue
            answer(server, request, bytes(request.data)[::-1])
            served += 1

    def drive(n, client, bell, seed):
        rng = np.random.default_rng(seed)
        waiting = {}
        sent = received = 0
        while received < n:
            seen = bell.value()
            moved = False
            while sent < n and len(waiting) < 4 and (slot := client.acquire()) is not None:
                data = rng.bytes(int(rng.integers(1, 4096)))
                client.request(slot)[: len(data)] = data
                client.post(slot, len(data))
                waiting[slot] = data
                sent, moved = sent + 1, True
            for slot in [*waiting]:
                reply = client.reply(slot)
                if reply is not None:
                    assert bytes(reply) == waiting.pop(slot)[::-1]
                    client.release(slot)
                    received, moved = received + 1, True
            if not moved:
                assert bell.wait(seen, SOON) != seen
        back.append(n)

    # The same two workers also talk the other way round, over channels of their own.
    back_bell = [world.bell(), world.bell()]
    listener = world.listener(back_bell[0], "ew1")
    address = world.reach("ew1", listener.address())
    client = world.made(
        world.connector(back_bell[1], "aw1").connect("ew1", 1, address, pair.geometry)
    )
    server = until(back_bell[0], lambda: first(listener.accepted()))
    world.made(server)
    n = world.load
    threads = [
        threading.Thread(target=serve, args=(n, pair.server, pair.server_bell)),
        threading.Thread(target=drive, args=(n, pair.client, pair.client_bell, 1)),
        threading.Thread(target=serve, args=(n, server, back_bell[0])),
        threading.Thread(target=drive, args=(n, client, back_bell[1], 2)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert back == [n, n]


def test_an_abandoned_slot_is_not_reused_before_its_late_reply(pair):
    slot = ask(pair.client, b"old")
    request = pair.take()
    pair.client.abandon(slot)
    others = [ask(pair.client, b"new") for _ in range(SMALL.slots - 1)]
    assert pair.client.acquire() is None
    answer(pair.server, request, b"late")
    pair.settle(owed=len(others))
    assert ask(pair.client, b"again") == slot
    assert pair.client.reply(slot) is None  # the late reply is not taken for the new one
    for _ in others:
        pair.take()
    request = pair.take()
    assert bytes(request.data) == b"again"
    answer(pair.server, request, b"fresh")
    assert bytes(pair.got(slot)) == b"fresh"


def test_an_answered_slot_can_be_abandoned_too(pair):
    for seen in (False, True):
        slot = ask(pair.client, b"x")
        answer(pair.server, pair.take(), b"y")
        pair.settle()
        if seen:
            assert pair.client.reply(slot) is not None
        pair.client.abandon(slot)
    for _ in range(SMALL.slots):
        ask(pair.client, b"z")
