"""What becomes of a peer, and how it shows: for every transport."""

from __future__ import annotations

import re
import time

import pytest

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.base import Geometry
from tests.conformance.pairs import SMALL, SOON, answer, ask, first, until
from tests.conformance.traits import only


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
    bell.wait(bell.value(), 0.05)  # what a card wrote may be in memory before it rings
    peer.stop()
    slot = ask(client, b"meanwhile")
    seen = bell.value()
    assert bell.wait(seen, 0.3) == seen
    assert client.lost is None
    assert client.reply(slot) is None
    peer.go_on()
    assert bytes(until(bell, lambda: client.reply(slot))) == reply_to(b"meanwhile")


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


def test_a_server_that_leaves_says_so_and_comes_back_as_another(world, reply_to):
    bell = world.bell()
    _, address = world.serving_peer("leave")
    client = world.made(world.connector(bell).connect("ew0", 1, address, SMALL))
    ask(client, b"go")
    assert until(bell, lambda: client.lost) == "closed by peer"
    _, address = world.serving_peer("echo", 2)
    with pytest.raises(ConnectFailed, match=r"this is ew0\.2, not ew0\.1"):
        world.connector(bell).connect("ew0", 1, address, SMALL)
    again = world.made(world.connector(bell).connect("ew0", 2, address, SMALL))
    slot = ask(again, b"hello")
    assert bytes(until(bell, lambda: again.reply(slot))) == reply_to(b"hello")


def test_nobody_waits_for_a_stopped_peer(world, reply_to):
    size = world.large // 2
    big = Geometry(4, size, size)
    bell = world.bell()
    peer, address = world.serving_peer("echo")
    client = world.made(world.connector(bell).connect("ew0", 1, address, big))
    slot = ask(client, b"before")
    until(bell, lambda: client.reply(slot))
    client.release(slot)
    peer.stop()
    begin = time.monotonic()
    data = [bytes([n]) * (size - 1) + b"z" for n in range(4)]
    slots = [ask(client, d) for d in data]
    assert client.acquire() is None
    client.probe()
    assert time.monotonic() - begin < SOON / 10
    assert client.lost is None
    peer.go_on()
    for slot, sent in zip(slots, data, strict=True):
        assert until(bell, lambda: client.reply(slot)) == reply_to(sent)  # noqa: B023


def test_a_stopped_peer_does_not_keep_anybody_from_closing(world):
    size = world.large // 2
    bell = world.bell()
    peer, address = world.serving_peer("mute")
    client = world.connector(bell).connect("ew0", 1, address, Geometry(4, size, size))
    peer.stop()
    for _ in range(4):
        ask(client, b"x" * size)
    begin = time.monotonic()
    client.close()
    assert time.monotonic() - begin < SOON / 10
    assert client.lost == "closed"
