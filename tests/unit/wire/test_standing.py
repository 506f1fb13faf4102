"""What a worker remembers of its head, so that it can tell the next one."""

from __future__ import annotations

from tarragon_hpc.wire.common import Peer, SamplingSpec, Standing, TokenDelta, Unanswered
from tarragon_hpc.wire.standing import Memory
from tarragon_hpc.wire.to_head import (
    Cleared,
    Failed,
    Holding,
    Linked,
    Ready,
    Refused,
    Suspect,
    TableApplied,
    Tokens,
)
from tarragon_hpc.wire.to_worker import (
    Abort,
    Drain,
    Load,
    Stores,
    Submit,
    Table,
    Unload,
    Welcome,
)

ME = ("aw0", 3)


def submit(request: str) -> Submit:
    return Submit(request, [1], SamplingSpec(max_tokens=9))


def test_an_ew_says_what_it_holds_and_what_it_was_told_to_change():
    memory = Memory()
    assert memory.standing() == Standing()
    memory.told(Welcome(1, [0, 2], [1]))
    assert memory.standing() == Standing(welcomed=True, experts=[0, 1, 2])
    memory.said(Ready("ew0", 1, {"experts": [0, 2], "shadows": [1]}))
    memory.told(Load([3]))
    memory.told(Unload([1]))
    standing = memory.standing()
    assert standing.holds == [0, 1, 2]
    assert standing.orders == [Unanswered(True, [3]), Unanswered(False, [1])]
    memory.said(Holding("ew0", 1, [0, 1, 2, 3]))
    assert memory.standing().orders == [Unanswered(False, [1])]
    assert memory.standing().holds == [0, 1, 2, 3]
    memory.told(Drain("enough"))
    assert memory.standing().leaving


def test_an_aw_says_its_tables_its_stores_and_how_its_peers_look():
    memory = Memory()
    memory.told(Welcome(0))
    memory.said(Ready(*ME, {"kv_blocks": 7}))
    memory.told(Stores([Peer("cs0", 2, {}), Peer("cs1", 1, {})]))
    memory.told(Table(4, [["ew0"]], []))
    memory.said(TableApplied(*ME, 4))
    memory.told(Table(5, [["ew0"]], []))
    memory.said(Linked(*ME, "ew0", 1, "shm"))
    memory.said(Linked(*ME, "ew0", 2, "tcp"))
    memory.said(Suspect(*ME, "ew0", 2, "lost"))
    memory.said(Suspect(*ME, "ew1", 1, "overdue"))
    memory.said(Cleared(*ME, "ew1", 1))
    standing = memory.standing()
    assert (standing.table_sent, standing.table_applied) == (5, 4)
    assert standing.stores == {"cs0": 2, "cs1": 1}
    assert memory.reports() == [
        Linked(*ME, "ew0", 2, "tcp"),
        Suspect(*ME, "ew0", 2, "lost"),
    ]


def test_only_sequences_that_run_are_dropped_and_only_once():
    memory = Memory()
    for request in "abcdef":
        memory.told(submit(request))
    memory.told(Abort(["a"]))
    memory.said(Failed(*ME, ["b"], "ew0 lost"))
    memory.said(Refused(*ME, "c", "no"))
    done = [TokenDelta("d", 0, [5], finish="length"), TokenDelta("e", 0, [5])]
    memory.said(Tokens(*ME, done))
    assert memory.drop_sequences() == ["e", "f"]
    assert memory.drop_sequences() == []
