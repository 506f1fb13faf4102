"""Who owes what, when it is late, and which replies count."""

from __future__ import annotations

import pytest

from tarragon_hpc.datapath.inflight import Inflight, Owed, refusal, stale
from tarragon_hpc.wire import dispatch as wire


def owed(worker="ew0", slot=0, *, chunk=0, part=0, deadline=10.0, sequence=1):
    return Owed(worker, 3, slot, sequence, chunk, part, 6, deadline - 10, deadline)


def reply(**change):
    header = wire.ReplyHeader(1, wire.STATUS_OK, 3, 7, 1, 0, 4, 6, 64, 0)
    return header._replace(**change)


def test_a_chunk_is_complete_when_nothing_is_owed_to_it():
    flight = Inflight()
    a, b, other = owed("ew0"), owed("ew1", part=1), owed("ew0", 1, chunk=4)
    for message in (a, b, other):
        flight.sent(message)
    assert flight.settled(b) is False
    assert flight.settled(other) is True
    assert flight.settled(a) is True
    assert flight.unanswered == []


def test_what_a_lost_worker_owes_can_be_sent_elsewhere():
    flight = Inflight()
    kept, lost, later = owed("ew0"), owed("ew1", part=1), owed("ew1", 1, chunk=4)
    for message in (kept, lost, later):
        flight.sent(message)
    assert flight.owed_by("ew1") == [lost, later]
    flight.withdraw(lost)
    replay = owed("ew2", 3, part=2, sequence=9)
    flight.sent(replay)
    assert flight.settled(kept) is False  # the replayed part belongs to the same chunk
    assert flight.settled(replay) is True
    with pytest.raises(ValueError):
        flight.settled(lost)  # late: nothing is owed by it any more


def test_deadlines_are_those_of_the_unanswered():
    flight = Inflight()
    assert flight.next_deadline() is None
    early, late = owed(deadline=5.0), owed("ew1", deadline=8.0)
    flight.sent(late)
    flight.sent(early)
    assert flight.next_deadline() == 5.0
    assert flight.overdue(4.9) == []
    assert flight.overdue(5.0) == [early]
    assert flight.overdue(9.0) == [late, early]
    flight.settled(early)
    assert flight.next_deadline() == 8.0


@pytest.mark.parametrize(
    ("change", "epoch", "why"),
    [
        ({}, 7, None),
        ({"sequence": 2}, 7, "reply of sequence 2, expected 1"),
        ({"incarnation": 2}, 7, "reply of incarnation 2, expected 3"),
        ({}, 8, "reply of epoch 7, expected 8"),
    ],
)
def test_only_the_reply_that_is_owed_counts(change, epoch, why):
    assert stale(owed(), reply(**change), epoch) == why


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
