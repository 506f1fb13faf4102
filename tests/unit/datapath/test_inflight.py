"""Who owes what, when it is late, and which replies count."""

from __future__ import annotations

import pytest

from tarragon_hpc.datapath.inflight import Inflight, Owed, refusal, stale
from tarragon_hpc.wire import dispatch as wire


def owed(worker="ew0", sequence=1, *, part=0, overdue=1.0, deadline=10.0):
    return Owed(worker, 3, None, 0, sequence, 7, 0, part, None, 6, 0.0, overdue, deadline)


def reply(**change):
    header = wire.ReplyHeader(1, wire.STATUS_OK, 3, 7, 1, 0, 4, 6, 64, 0)
    return header._replace(**change)


def test_a_part_may_be_owed_by_several_until_one_has_answered():
    flight = Inflight()
    first, again, other = owed(), owed("ew1", 2), owed("ew1", 3, part=1)
    for message in (first, again, other):
        flight.sent(message)
    assert flight.of(0, 0) == [first, again]
    flight.withdraw(again)
    assert not flight.awaits(again)
    assert flight.awaits(first)
    assert flight.unanswered == [first, other]
    with pytest.raises(KeyError):
        flight.withdraw(again)


def test_what_is_overdue_is_told_once_and_expires_later():
    flight = Inflight()
    assert flight.next_look() is None
    early, late = owed(overdue=5.0, deadline=20.0), owed("ew1", 2, overdue=8.0, deadline=10.0)
    flight.sent(late)
    flight.sent(early)
    assert flight.next_look() == 5.0
    assert flight.overdue(4.9) == []
    assert flight.overdue(5.0) == [early]
    assert flight.overdue(9.0, {early.sequence}) == [late]
    assert flight.next_look({early.sequence}) == 8.0
    assert flight.next_look({early.sequence, late.sequence}) == 10.0
    assert flight.expired(9.9) == []
    assert flight.expired(10.0) == [late]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"sequence": 2}, "reply of sequence 2, expected 1"),
        ({"incarnation": 2}, "reply of incarnation 2, expected 3"),
        ({"epoch": 8}, "reply of epoch 8, expected 7"),
        ({"layer": 1}, "reply of layer 1, expected 0"),
    ],
)
def test_only_the_reply_that_is_owed_counts(change, why):
    assert stale(owed(), 0, reply(**change)) == why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"status": wire.STATUS_UNKNOWN_EXPERT}, "it does not hold a wanted expert"),
        ({"status": 9}, "unknown status 9"),
        ({"pairs": 5}, "its reply has 5 rows of 64, dtype 1; expected 6 of 64, dtype 1"),
        ({"hidden": 32}, "its reply has 6 rows of 32, dtype 1; expected 6 of 64, dtype 1"),
        ({"dtype": 0}, "its reply has 6 rows of 64, dtype 0; expected 6 of 64, dtype 1"),
    ],
)
def test_a_reply_without_the_rows_is_a_refusal(change, why):
    assert refusal(owed(), reply(**change), 1, 64) == why
