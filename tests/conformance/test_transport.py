"""What every transport does, whatever it is made of (the contract: transport/base.py)."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import numpy as np
import pytest

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.base import Geometry

SMALL = Geometry(4, 256, 256)
SOON = 20.0  # seconds: longer than anything here takes, on any machine


class Pair:
    """A client and a server in this process, joined by channels."""

    def __init__(self, world, geometry=SMALL):
        self.world = world
        self.geometry = geometry
        self.server_bell, self.client_bell = world.bell(), world.bell()
        self.listener = world.listener(self.server_bell)
        self.client, self.server = self.join()

    def join(self, worker="aw0", incarnation=1, bell=None):
        connector = self.world.connector(bell or self.client_bell, worker, incarnation)
        client = connector.connect("ew0", 1, self.listener.address(), self.geometry)
        server = until(self.server_bell, lambda: first(self.listener.accepted()))
        return self.world.made(client), self.world.made(server)


@pytest.fixture
def pair(world):
    return Pair(world)


def first(items):
    return items[0] if items else None


def until(bell, condition):
    """The condition's value once it has one, looking again whenever the bell rings."""
    end = time.monotonic() + SOON
    while time.monotonic() < end:
        seen = bell.value()
        value = condition()
        if value:
            return value
        bell.wait(seen, end - time.monotonic())
    raise AssertionError("it did not happen")


def ask(client, data):
    slot = client.acquire()
    assert slot is not None, client
    client.request(slot)[: len(data)] = data
    client.post(slot, len(data))
    return slot


def answer(server, request, data):
    server.reply(request.slot)[: len(data)] = data
    server.send(request.slot, len(data))


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
            request = pair.server.poll()
            assert (request.slot, bytes(request.data)) == (slot, b"request %d" % m)
            answer(pair.server, request, b"reply %d" % m)
            assert bytes(pair.client.reply(slot)) == b"reply %d" % m
            pair.client.release(slot)
    assert pair.server.poll() is None


def test_no_free_slot_means_none_until_one_is_released(pair):
    slots = [ask(pair.client, b"x") for _ in range(SMALL.slots)]
    assert pair.client.acquire() is None
    requests = [pair.server.poll() for _ in slots]
    answer(pair.server, requests[1], b"second")
    assert pair.client.reply(1) is not None
    pair.client.release(1)
    assert pair.client.acquire() is None  # slots are used in order; the first is still owed
    answer(pair.server, requests[0], b"first")
    assert pair.client.acquire() is None  # there, but not released
    assert bytes(pair.client.reply(0)) == b"first"
    pair.client.release(0)
    assert [pair.client.acquire(), pair.client.acquire(), pair.client.acquire()] == [0, 1, None]


def test_replies_may_come_in_any_order(pair):
    slots = [ask(pair.client, b"%d" % n) for n in range(SMALL.slots)]
    requests = [pair.server.poll() for _ in slots]
    for request in reversed(requests):
        answer(pair.server, request, b"to " + bytes(request.data))
        waiting = [s for s in slots if pair.client.reply(s) is None]
        assert waiting == slots[: request.slot]
    assert [bytes(pair.client.reply(s)) for s in slots] == [b"to %d" % n for n in range(4)]


def test_buffers_have_the_agreed_size_and_the_receiver_cannot_write(pair):
    slot = pair.client.acquire()
    assert len(pair.client.request(slot)) == SMALL.request_bytes
    pair.client.post(slot, SMALL.request_bytes)
    request = pair.server.poll()
    assert len(request.data) == SMALL.request_bytes
    assert request.data.readonly
    assert len(pair.server.reply(slot)) == SMALL.reply_bytes
    pair.server.send(slot, 0)
    assert len(pair.client.reply(slot)) == 0
    assert pair.client.reply(slot).readonly


def test_large_slots_arrive_whole(world):
    size = (8 << 20) + 3
    pair = Pair(world, Geometry(2, size, size + 64))
    data = np.random.default_rng(0).bytes(size)
    for _ in range(3):
        slot = ask(pair.client, data)
        request = pair.server.poll()
        assert request.data == data
        answer(pair.server, request, data[::-1] + b"t" * 64)
        assert pair.client.reply(slot) == data[::-1] + b"t" * 64
        pair.client.release(slot)


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
    request = pair.server.poll()
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
        seen = pair.server_bell.value()
        ask(client, b"from %d" % n)
        assert pair.server_bell.wait(seen, SOON) != seen
        found = [s.poll() for s in servers]
        assert [f is not None for f in found] == [m == n for m in range(3)]
        seen = pair.client_bell.value()
        answer(servers[n], found[n], b"ok")
        assert pair.client_bell.wait(seen, SOON) != seen
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
    client = world.made(
        world.connector(back_bell[1], "aw1").connect("ew1", 1, listener.address(), pair.geometry)
    )
    server = until(back_bell[0], lambda: first(listener.accepted()))
    world.made(server)
    n = 1000
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
    request = pair.server.poll()
    pair.client.abandon(slot)
    others = [ask(pair.client, b"new") for _ in range(SMALL.slots - 1)]
    assert pair.client.acquire() is None
    answer(pair.server, request, b"late")
    assert ask(pair.client, b"again") == slot
    assert pair.client.reply(slot) is None  # the late reply is not taken for the new one
    for _ in others:
        pair.server.poll()
    request = pair.server.poll()
    assert bytes(request.data) == b"again"
    answer(pair.server, request, b"fresh")
    assert bytes(pair.client.reply(slot)) == b"fresh"


def test_an_answered_slot_can_be_abandoned_too(pair):
    for seen in (False, True):
        slot = ask(pair.client, b"x")
        answer(pair.server, pair.server.poll(), b"y")
        if seen:
            assert pair.client.reply(slot) is not None
        pair.client.abandon(slot)
    for _ in range(SMALL.slots):
        ask(pair.client, b"z")


def test_close_shows_as_loss_at_the_other_end(pair):
    pair.client.close()
    assert until(pair.server_bell, lambda: pair.server.lost) == "closed by peer"
    client, server = pair.join(incarnation=2)
    server.close()
    assert until(pair.client_bell, lambda: client.lost) == "closed by peer"
    for channel in (pair.client, pair.server, client, server):
        channel.close()  # twice is harmless
        assert channel.lost


def test_no_method_of_a_lost_channel_raises(pair):
    answered, owed = ask(pair.client, b"1"), ask(pair.client, b"2")
    filling = pair.client.acquire()
    request, later = pair.server.poll(), pair.server.poll()
    answer(pair.server, request, b"made it")
    pair.server.close()
    reason = until(pair.client_bell, lambda: pair.client.lost)
    pair.client.post(filling, 1)
    assert bytes(pair.client.reply(answered)) == b"made it"
    assert pair.client.reply(owed) is None
    assert pair.client.acquire() is None
    pair.client.release(answered)
    pair.client.abandon(owed)
    pair.client.abandon(filling)
    assert pair.server.poll() is None
    pair.server.reply(later.slot)[:1] = b"x"
    pair.server.send(later.slot, 1)
    pair.client.close()
    assert pair.client.lost == reason  # the first reason stays


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ({"peer_incarnation": 2}, r"this is ew0\.1, not ew0\.2"),
        ({"peer": "ew7"}, r"this is ew0\.1, not ew7\.1"),
    ],
)
def test_a_wrong_door_is_refused_with_the_reason(pair, who, why):
    target = {"peer": "ew0", "peer_incarnation": 1} | who
    connector = pair.world.connector(pair.client_bell, "aw1")
    with pytest.raises(ConnectFailed, match=why):
        connector.connect(address=pair.listener.address(), geometry=SMALL, **target)
    assert pair.listener.accepted() == []


def test_a_wrong_secret_is_refused(pair):
    connector = pair.world.connector(pair.client_bell, "aw1", secret=b"x" * 32)
    with pytest.raises(ConnectFailed, match="secret"):
        connector.connect("ew0", 1, pair.listener.address(), SMALL)
    assert pair.listener.accepted() == []
    pair.join("aw1")


def test_nobody_there_is_a_failed_connect(world):
    connector = world.connector(world.bell())
    for address in (world.nowhere(), {}):
        with pytest.raises(ConnectFailed, match="ew0"):
            connector.connect("ew0", 1, address, SMALL)


def test_a_closed_listener_takes_nobody_but_its_channels_live_on(pair):
    pair.listener.close()
    connector = pair.world.connector(pair.client_bell, "aw1")
    with pytest.raises(ConnectFailed):
        connector.connect("ew0", 1, pair.listener.address(), SMALL)
    slot = ask(pair.client, b"still here")
    answer(pair.server, pair.server.poll(), b"so am I")
    assert bytes(pair.client.reply(slot)) == b"so am I"


def test_a_new_incarnation_replaces_the_old_one(pair):
    ask(pair.client, b"never answered")
    client, server = pair.join(incarnation=3)
    assert until(pair.server_bell, lambda: pair.server.lost) == "replaced by aw0.3"
    assert until(pair.client_bell, lambda: pair.client.lost) == "closed by peer"
    assert pair.server.poll() is None  # what the old one had posted is gone with it
    assert server.peer_incarnation == 3
    slot = ask(client, b"hello")
    answer(server, server.poll(), b"welcome")
    assert bytes(client.reply(slot)) == b"welcome"
    with pytest.raises(ConnectFailed, match=r"aw0\.2 was replaced by aw0\.3"):
        pair.join(incarnation=2)
    assert client.lost is None
    pair.join(incarnation=3)  # the same one may open another channel
    assert client.lost is None


def test_a_killed_server_is_seen_at_once_and_its_last_reply_can_be_read(world, reply_to):
    peer, address = world.serving_peer("once")
    bell = world.bell()
    client = world.made(world.connector(bell).connect("ew0", 1, address, SMALL))
    answered, owed = ask(client, b"first"), ask(client, b"second")
    assert until(bell, lambda: client.reply(answered)) is not None
    assert client.lost is None
    begin = time.monotonic()
    peer.kill()
    reason = until(bell, lambda: client.lost)
    seconds = time.monotonic() - begin
    assert "killed" in reason or "process gone" in reason
    assert seconds < 0.05
    assert bytes(client.reply(answered)) == reply_to(b"first")
    assert client.reply(owed) is None
    client.release(answered)
    client.abandon(owed)


def test_a_killed_client_is_seen_at_once_and_its_requests_are_dropped(world):
    bell = world.bell()
    listener = world.listener(bell)
    peer = world.asking_peer(listener.address(), Geometry(2, 256, 256))
    server = world.made(until(bell, lambda: first(listener.accepted())))
    request = until(bell, server.poll)
    assert bytes(request.data) == b"hello"
    begin = time.monotonic()
    peer.kill()
    assert until(bell, lambda: server.lost)
    assert time.monotonic() - begin < 0.05
    answer(server, request, b"too late")
    assert server.poll() is None


def test_a_stopped_peer_is_not_lost(world, reply_to):
    peer, address = world.serving_peer("echo")
    bell = world.bell()
    client = world.made(world.connector(bell).connect("ew0", 1, address, SMALL))
    slot = ask(client, b"before")
    assert bytes(until(bell, lambda: client.reply(slot))) == reply_to(b"before")
    client.release(slot)
    peer.stop()
    slot = ask(client, b"meanwhile")
    seen = bell.value()
    assert bell.wait(seen, 0.3) == seen
    assert client.lost is None
    assert client.reply(slot) is None
    peer.go_on()
    assert bytes(until(bell, lambda: client.reply(slot))) == reply_to(b"meanwhile")


def test_close_under_load_ends_in_a_loss_and_nothing_else(world):
    pair = Pair(world)
    outcomes = []

    def drive():
        count = 0
        while pair.client.lost is None:
            seen = pair.client_bell.value()
            slot = pair.client.acquire()
            if slot is not None:
                pair.client.post(slot, 8)
            for s in range(SMALL.slots):
                try:
                    if pair.client.reply(s) is not None:
                        pair.client.release(s)
                        count += 1
                except RuntimeError:  # a slot that is free
                    continue
            pair.client_bell.wait(seen, 0.05)
        outcomes.append(count)

    driver = threading.Thread(target=drive)
    driver.start()
    served = 0
    while served < 500:
        seen = pair.server_bell.value()
        request = pair.server.poll()
        if request is None:
            pair.server_bell.wait(seen, SOON)
            continue
        answer(pair.server, request, b"y")
        served += 1
    pair.server.close()
    driver.join(SOON)
    assert not driver.is_alive()
    assert pair.client.lost == "closed by peer"
    assert outcomes[0] > 0


def descriptors():
    """What this process has open, numbers and inodes left out."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":[")[0])
    return sorted(found)


def test_nothing_is_left_open(world):
    def settle(lasting):
        for thread in set(threading.enumerate()) - lasting:
            thread.join(SOON)
            assert not thread.is_alive()

    pair = Pair(world)  # everything that is made once is made now
    lasting = {t for t in threading.enumerate() if not t.name.endswith("-join")}
    settle(lasting)
    before = descriptors()
    for n in (2, 3, 4):
        client, server = pair.join("aw1", n)
        other_client, other_server = pair.join("aw2", n)
        ask(client, b"owed")
        client.close()
        other_server.close()
        assert until(pair.server_bell, lambda: server.lost)  # noqa: B023
        assert until(pair.client_bell, lambda: other_client.lost)  # noqa: B023
        for channel in (client, server, other_client, other_server):
            channel.close()
    settle(lasting)
    end = time.monotonic() + SOON  # a monitor that lasts may be closing a socket right now
    while descriptors() != before and time.monotonic() < end:
        pair.client_bell.wait(pair.client_bell.value(), 0.01)
    assert descriptors() == before
