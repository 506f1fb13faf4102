"""What each fault of `faulty.py` looks like at the level of the contract: over every transport."""

from __future__ import annotations

import time

from tarragon_hpc.transport.fault_plan import (
    Corrupt,
    Delay,
    Drop,
    FaultPlan,
    Reorder,
    Rule,
    Sever,
)
from tests.conformance.pairs import Pair, answer, ask, until


def pair_with(faulty, *rules):
    return Pair(faulty(FaultPlan(rules)))


def reply(nth, action):
    return Rule("ew0", "reply", nth, action)


def request(nth, action):
    return Rule("aw0", "request", nth, action)


def heard(pair):
    before = pair.client.answered
    pair.client.probe()
    return until(pair.client_bell, lambda: pair.client.answered > before)


def test_a_dropped_reply_is_owed_for_ever_while_the_peer_lives(faulty):
    pair = pair_with(faulty, reply(2, Drop()))
    slots = [ask(pair.client, b"%d" % n) for n in range(4)]
    for _ in slots:
        got = pair.take()
        answer(pair.server, got, bytes(got.data))
    assert [bytes(pair.got(s)) for s in (0, 2, 3)] == [b"0", b"2", b"3"]
    assert heard(pair)
    assert pair.client.reply(1) is None
    assert pair.client.owed() == 1
    for slot in (0, 2, 3):
        pair.client.release(slot)
    assert pair.client.acquire() == 0
    assert pair.client.acquire() is None
    pair.client.abandon(1)
    assert pair.client.acquire() is None  # it could still come, for all anybody knows
    assert pair.client.lost is None


def test_a_dropped_request_is_not_seen_and_the_next_one_is(faulty):
    pair = pair_with(faulty, request(1, Drop()))
    lost, seen = ask(pair.client, b"lost"), ask(pair.client, b"seen")
    got = pair.take()
    assert bytes(got.data) == b"seen"
    answer(pair.server, got, b"yes")
    assert bytes(pair.got(seen)) == b"yes"
    assert heard(pair)
    assert pair.client.reply(lost) is None
    assert pair.client.owed() == 1
    assert pair.server.poll() is None


def test_a_delayed_reply_rings_when_it_is_due_and_others_overtake_it(faulty):
    pair = pair_with(faulty, reply(1, Delay(0.15)))
    late, soon = ask(pair.client, b"late"), ask(pair.client, b"soon")
    begin = time.monotonic()
    for _ in range(2):
        got = pair.take()
        answer(pair.server, got, bytes(got.data))
    assert bytes(pair.got(soon)) == b"soon"
    assert pair.client.reply(late) is None
    assert pair.client.owed() == 1
    assert bytes(pair.got(late)) == b"late"
    assert time.monotonic() - begin >= 0.15
    assert pair.client.owed() == 0


def test_a_delayed_reply_to_an_abandoned_slot_frees_it_when_it_is_due(faulty):
    pair = pair_with(faulty, reply(1, Delay(0.05)))
    slots = [ask(pair.client, b"x") for _ in range(4)]
    answer(pair.server, pair.take(), b"y")
    pair.client.abandon(slots[0])
    assert pair.client.acquire() is None
    assert until(pair.client_bell, pair.client.acquire) == slots[0]


def test_requests_behind_a_delayed_one_wait_for_it(faulty):
    pair = pair_with(faulty, request(2, Delay(0.1)))
    begin = time.monotonic()
    for n in range(4):
        ask(pair.client, b"%d" % n)
    assert bytes(pair.take().data) == b"0"
    assert [bytes(pair.take().data) for _ in range(3)] == [b"1", b"2", b"3"]
    assert time.monotonic() - begin >= 0.1


def test_a_reply_out_of_order_comes_after_a_later_one(faulty):
    pair = pair_with(faulty, reply(1, Reorder(60.0)), reply(3, Reorder(0.05)))
    slots = [ask(pair.client, b"%d" % n) for n in range(3)]
    gotten = [pair.take() for _ in slots]
    for got in gotten[:2]:
        answer(pair.server, got, bytes(got.data))
    until(pair.client_bell, lambda: pair.client.reply(0) is None and pair.client.reply(1))
    assert bytes(pair.got(0)) == b"0"
    answer(pair.server, gotten[2], b"2")
    assert bytes(pair.got(2)) == b"2"  # no later one came: it was waited for in vain


def test_one_bit_of_a_corrupted_message_differs(faulty):
    pair = pair_with(faulty, request(1, Corrupt(11)), reply(1, Corrupt(8 * 5 + 2)))
    for sent, received, returned in (
        (b"first", b"f" + bytes([ord("i") ^ 8]) + b"rst", bytes([ord("r") ^ 4]) + b"eply"),
        (b"second", b"second", b"reply"),
    ):
        slot = ask(pair.client, sent)
        got = pair.take()
        assert bytes(got.data) == received
        answer(pair.server, got, b"reply")
        assert bytes(pair.got(slot)) == returned
        assert pair.got(slot).readonly
        pair.client.release(slot)


def test_a_connection_that_ends_at_a_reply_is_lost_at_both_ends_once(faulty):
    pair = pair_with(faulty, reply(2, Sever()))
    there, never = ask(pair.client, b"1"), ask(pair.client, b"2")
    answer(pair.server, pair.take(), b"made it")
    assert bytes(pair.got(there)) == b"made it"
    answer(pair.server, pair.take(), b"not this one")
    assert until(pair.client_bell, lambda: pair.client.lost) == "severed at reply 2"
    assert until(pair.server_bell, lambda: pair.server.lost) == "closed by peer"
    assert bytes(pair.client.reply(there)) == b"made it"
    assert pair.client.reply(never) is None
    assert pair.client.acquire() is None
    client, server = pair.join()
    for n in range(3):
        slot = ask(client, b"%d" % n)
        answer(server, until(pair.server_bell, server.poll), b"still here")
        assert bytes(until(pair.client_bell, lambda: client.reply(slot))) == b"still here"  # noqa: B023


def test_a_connection_that_ends_at_a_request_is_lost_at_both_ends(faulty):
    pair = pair_with(faulty, request(2, Sever()))
    ask(pair.client, b"1")
    assert bytes(pair.take().data) == b"1"
    ask(pair.client, b"2")
    assert until(pair.server_bell, lambda: pair.server.lost) == "severed at request 2"
    assert pair.server.poll() is None
    assert until(pair.client_bell, lambda: pair.client.lost) == "closed by peer"
