"""Links that break or fall silent: for every transport that has any."""

from __future__ import annotations

import time

import pytest

from tests.conformance.pairs import Pair, answer, ask, first, until
from tests.conformance.traits import only

networked = only(has_network=True)


def heard(client, bell):
    """A sign of life that was asked for now."""
    before = client.answered
    client.probe()
    return until(bell, lambda: client.answered > before)


@networked
def test_both_ends_see_a_cut_link_and_what_had_arrived_stays(world):
    pair = Pair(world)
    there, owed = ask(pair.client, b"there"), ask(pair.client, b"owed")
    request, later = pair.take(), pair.take()
    answer(pair.server, request, b"made it")
    pair.got(there)
    world.cut("ew0")
    for bell, end in ((pair.client_bell, pair.client), (pair.server_bell, pair.server)):
        assert until(bell, lambda: end.lost, world.cut_seen_s)  # noqa: B023
    assert bytes(pair.client.reply(there)) == b"made it"
    assert pair.client.reply(owed) is None
    answer(pair.server, later, b"nobody hears this")
    pair.client.abandon(owed)
    assert pair.client.acquire() is None
    assert pair.server.poll() is None


@networked
@pytest.mark.parametrize("breaks", ["cut", "silence"])
def test_after_a_break_the_worker_joins_as_a_new_incarnation(world, breaks):
    pair = Pair(world)
    ask(pair.client, b"never answered")
    getattr(world, breaks)("ew0")
    seconds = world.cut_seen_s + world.silent_loss_s
    assert until(pair.client_bell, lambda: pair.client.lost, seconds)
    world.heal("ew0")
    client, server = pair.join(incarnation=2)
    assert until(pair.server_bell, lambda: pair.server.lost, seconds)
    slot = ask(client, b"hello")
    answer(server, until(pair.server_bell, server.poll), b"welcome")
    assert bytes(until(pair.client_bell, lambda: client.reply(slot))) == b"welcome"
    assert heard(client, pair.client_bell)


@only(has_network=True, one_link=False)
def test_other_links_do_not_notice(world):
    pair = Pair(world)
    bell = world.bell()
    listener = world.listener(bell, "ew1")
    address = world.reach("ew1", listener.address())
    connector = world.connector(pair.client_bell, "aw0")
    client = world.made(connector.connect("ew1", 1, address, pair.geometry))
    server = world.made(until(bell, lambda: first(listener.accepted())))
    for breaks in (world.silence, world.cut):
        breaks("ew0")
        slot = ask(client, b"still here")
        answer(server, until(bell, server.poll), b"so am I")
        assert bytes(until(pair.client_bell, lambda: client.reply(slot))) == b"so am I"  # noqa: B023
        client.release(slot)
        assert heard(client, pair.client_bell)
    assert until(pair.client_bell, lambda: pair.client.lost, world.cut_seen_s)
    assert client.lost is None
    assert server.lost is None


@networked
def test_silence_is_no_loss_at_first_and_one_at_both_ends_in_the_end(world):
    pair = Pair(world)
    assert heard(pair.client, pair.client_bell)
    begin = time.monotonic()
    world.silence("ew0")
    slot = ask(pair.client, b"anybody there?")
    pair.client.probe()
    pair.client_bell.wait(pair.client_bell.value(), world.silent_loss_s / 4)
    assert pair.client.answered == 1
    assert pair.client.lost is None
    assert pair.server.lost is None
    assert pair.server.poll() is None
    for bell, end in ((pair.client_bell, pair.client), (pair.server_bell, pair.server)):
        assert until(bell, lambda: end.lost, begin + world.silent_loss_s - time.monotonic())  # noqa: B023
    assert pair.client.reply(slot) is None
    assert pair.client.acquire() is None


@networked
def test_what_a_short_silence_held_up_arrives_once_and_in_order(world):
    pair = Pair(world)
    early = ask(pair.client, b"early")
    request = pair.take()
    world.silence("ew0")
    slots = [ask(pair.client, b"%d" % n) for n in range(3)]
    answer(pair.server, request, b"late reply")
    pair.client.probe()
    pair.client_bell.wait(pair.client_bell.value(), world.silent_loss_s / 5)
    assert pair.client.reply(early) is None
    assert pair.client.owed() == 4
    world.heal("ew0")
    assert bytes(pair.got(early)) == b"late reply"
    for n, slot in enumerate(slots):
        request = pair.take()
        assert bytes(request.data) == b"%d" % n
        answer(pair.server, request, b"to %d" % n)
        assert bytes(pair.got(slot)) == b"to %d" % n
    assert pair.server.poll() is None
    assert until(pair.client_bell, lambda: pair.client.answered == 1)
    assert pair.client.lost is None


@networked
def test_a_late_reply_after_others_were_asked_frees_its_slot_and_nothing_else(world):
    """What the REFE does about a silent EW: give the slot up, and use it again afterwards."""
    pair = Pair(world)
    world.silence("ew0")
    slots = [ask(pair.client, b"old") for _ in range(pair.geometry.slots)]
    for slot in slots:
        pair.client.abandon(slot)
    assert pair.client.acquire() is None
    world.heal("ew0")
    for _ in slots:
        answer(pair.server, pair.take(), b"late")
    pair.settle()
    assert ask(pair.client, b"new") == slots[0]
    request = pair.take()
    assert bytes(request.data) == b"new"
    assert pair.client.reply(slots[0]) is None
    answer(pair.server, request, b"fresh")
    assert bytes(pair.got(slots[0])) == b"fresh"
