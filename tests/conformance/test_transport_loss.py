"""The end of a channel, wanted or not, and who may open one: for every transport."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time

import pytest

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.base import Geometry
from tests.conformance.pairs import SMALL, SOON, Pair, answer, ask, first, until
from tests.conformance.traits import only


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
        connector.connect(address=pair.address, geometry=SMALL, **target)
    assert pair.listener.accepted() == []


def test_a_wrong_secret_is_refused(pair):
    connector = pair.world.connector(pair.client_bell, "aw1", secret=b"x" * 32)
    with pytest.raises(ConnectFailed, match="secret"):
        connector.connect("ew0", 1, pair.address, SMALL)
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
        connector.connect("ew0", 1, pair.address, SMALL)
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
    assert re.search(world.died, reason)
    assert seconds < world.death_seen_s
    assert bytes(client.reply(answered)) == reply_to(b"first")
    assert client.reply(owed) is None
    client.release(answered)
    client.abandon(owed)


def test_a_killed_client_is_seen_at_once_and_its_requests_are_dropped(world):
    bell = world.bell()
    listener = world.listener(bell)
    peer = world.asking_peer(world.reach("ew0", listener.address()), Geometry(2, 256, 256))
    server = world.made(until(bell, lambda: first(listener.accepted())))
    request = until(bell, server.poll)
    assert bytes(request.data) == b"hello"
    begin = time.monotonic()
    peer.kill()
    assert until(bell, lambda: server.lost)
    assert time.monotonic() - begin < world.death_seen_s
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


@pytest.mark.parametrize("mode", ["echo", "mute"])
def test_a_probe_is_answered_by_a_process_that_lives_whatever_it_does(world, mode):
    peer, address = world.serving_peer(mode)
    bell = world.bell()
    client = world.made(world.connector(bell).connect("ew0", 1, address, SMALL))
    ask(client, b"anything")
    for number in (1, 2, 3):
        client.probe()
        until(bell, lambda n=number: client.answered == n)
    assert client.lost is None


@only(stopped_peers_answer_probes=False)
def test_a_stopped_process_answers_no_probe_until_it_goes_on(world):
    peer, address = world.serving_peer("echo")
    bell = world.bell()
    client = world.made(world.connector(bell).connect("ew0", 1, address, SMALL))
    client.probe()
    until(bell, lambda: client.answered == 1)
    peer.stop()
    for _ in range(3):
        client.probe()
    time.sleep(0.05)
    assert client.answered == 1
    assert client.lost is None
    peer.go_on()
    client.probe()
    until(bell, lambda: client.answered > 1)


def test_probing_a_lost_peer_does_nothing(pair):
    pair.server.close()
    until(pair.client_bell, lambda: pair.client.lost)
    pair.client.probe()
    assert pair.client.answered == 0
