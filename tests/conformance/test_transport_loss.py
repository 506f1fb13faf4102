"""The end of a channel, wanted or not, and who may open one: for every transport."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from tarragon_hpc.errors import ConnectFailed
from tests.conformance.pairs import SMALL, SOON, Pair, answer, ask, until


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
    request, later = pair.take(), pair.take()
    answer(pair.server, request, b"made it")
    assert bytes(pair.got(answered)) == b"made it"
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
    answer(pair.server, pair.take(), b"so am I")
    assert bytes(pair.got(slot)) == b"so am I"


def test_a_new_incarnation_replaces_the_old_one(pair):
    ask(pair.client, b"never answered")
    client, server = pair.join(incarnation=3)
    assert until(pair.server_bell, lambda: pair.server.lost) == "replaced by aw0.3"
    assert until(pair.client_bell, lambda: pair.client.lost) == "closed by peer"
    assert pair.server.poll() is None  # what the old one had posted is gone with it
    assert server.peer_incarnation == 3
    slot = ask(client, b"hello")
    answer(server, until(pair.server_bell, server.poll), b"welcome")
    assert bytes(until(pair.client_bell, lambda: client.reply(slot))) == b"welcome"
    with pytest.raises(ConnectFailed, match=r"aw0\.2 was replaced by aw0\.3"):
        pair.join(incarnation=2)
    assert client.lost is None
    pair.join(incarnation=3)  # the same one may open another channel
    assert client.lost is None


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


def test_probing_a_lost_peer_does_nothing(pair):
    pair.server.close()
    until(pair.client_bell, lambda: pair.client.lost)
    pair.client.probe()
    assert pair.client.answered == 0
