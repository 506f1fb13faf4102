"""The routing table: the first candidate that is not lost."""

from __future__ import annotations

from tarragon_hpc.datapath.ert import ERT

TABLE = ERT.of(3, [["ew0", "ew1"], ["ew1", "ew2"], ["ew2"], []])


def test_workers_in_order_of_first_mention():
    assert TABLE.workers == ("ew0", "ew1", "ew2")


def test_the_first_candidate_that_is_left_owns_the_expert():
    assert TABLE.owners(TABLE.workers).tolist() == [0, 1, 2, -1]
    assert TABLE.owners(TABLE.workers, {"ew1"}).tolist() == [0, 2, 2, -1]
    assert TABLE.owners(TABLE.workers, {"ew0", "ew2"}).tolist() == [1, 1, -1, -1]
    assert TABLE.owners(TABLE.workers, {"ew0", "ew1", "ew2"}).tolist() == [-1] * 4


def test_owners_are_indices_of_the_given_workers():
    assert TABLE.owners(["ew2", "ew0"]).tolist() == [1, 0, 0, -1]


def test_of_those_to_be_avoided_the_least_bad_owns_what_nobody_else_can():
    def owners(avoid, lost=frozenset()):
        return TABLE.owners(TABLE.workers, lost, avoid).tolist()

    assert owners(("ew0",)) == [1, 1, 2, -1]
    assert owners(("ew0", "ew1")) == [1, 2, 2, -1]
    assert owners(("ew1", "ew0")) == [0, 2, 2, -1]
    assert owners(("ew2", "ew0", "ew1")) == [1, 1, 2, -1]
    assert owners(("ew2", "ew0", "ew1"), {"ew1"}) == [0, 2, 2, -1]
