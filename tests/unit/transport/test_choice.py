from __future__ import annotations

from itertools import product

import pytest

from tarragon_hpc.transport.choice import KINDS, Choice, Side, choose, merge, take_apart


def side(kinds: str = "shm tcp", node: str | None = "a", fabric: str | None = None) -> Side:
    return Side(frozenset(kinds.split()), node, fabric)


IB, OTHER_IB, ROCE = "ib:fe80000000000000", "ib:fe80000000000001", "roce"
EVERY = "shm rdma tcp"


@pytest.mark.parametrize(
    ("mine", "theirs", "choice"),
    [
        (side(), side(), Choice("shm")),
        (side(EVERY, fabric=IB), side(EVERY, fabric=IB), Choice("shm")),
        (side(), side(node="b"), Choice("tcp")),
        (side(EVERY, "a", IB), side(EVERY, "b", IB), Choice("rdma")),
        (side(EVERY, "a", ROCE), side(EVERY, "b", ROCE), Choice("rdma")),
        (
            side(EVERY, "a", IB),
            side(EVERY, "b", OTHER_IB),
            Choice("tcp", f"rdma: {IB} here, {OTHER_IB} there"),
        ),
        (
            side(EVERY, "a", IB),
            side(EVERY, "b", ROCE),
            Choice("tcp", f"rdma: {IB} here, roce there"),
        ),
        (side(EVERY, "a", IB), side(node="b"), Choice("tcp", "rdma: only here")),
        (side(), side(EVERY, "b", IB), Choice("tcp", "rdma: only there")),
        # One transport by configuration: its address does not tell of a node.
        (side("shm"), side("shm", None), Choice("shm")),
        (side("rdma", fabric=IB), side("rdma", None, IB), Choice("rdma")),
    ],
)
def test_the_best_that_both_ends_have(mine, theirs, choice):
    assert choose(mine, theirs) == choice


def test_what_failed_is_not_chosen_again_and_told():
    mine, theirs = side(EVERY, fabric=IB), side(EVERY, fabric=IB)
    failed = {"shm": "no such file"}
    assert choose(mine, theirs, failed) == Choice("rdma", "shm: no such file")
    failed["rdma"] = "no route"
    assert choose(mine, theirs, failed) == Choice("tcp", "shm: no such file; rdma: no route")
    failed["tcp"] = "refused"
    assert choose(mine, theirs, failed) == "shm: no such file; rdma: no route; tcp: refused"


def test_no_way_at_all_is_told():
    assert choose(side("shm"), side("shm", "b")) == "shm: on another node"
    assert choose(side("shm"), side("tcp")) == "shm: only here; tcp: only there"
    mine, theirs = side("rdma", fabric=IB), side("rdma", "b", ROCE)
    assert choose(mine, theirs) == f"rdma: {IB} here, roce there"


def test_whatever_the_sides_the_choice_is_one_that_both_have_and_has_not_failed():
    sets = [" ".join(k for k, on in zip(KINDS, bits, strict=True) if on)
            for bits in product((0, 1), repeat=3)]  # fmt: skip
    for mine, theirs, failed, node, fabric in product(sets, sets, sets, "ab", (IB, ROCE)):
        choice = choose(
            side(mine, "a", IB), side(theirs, node, fabric), dict.fromkeys(failed.split(), "why")
        )
        common = set(mine.split()) & set(theirs.split()) - set(failed.split())
        common -= {"shm"} if node == "b" else set()
        common -= {"rdma"} if fabric == ROCE else set()
        if common:
            assert choice[0] == next(k for k in KINDS if k in common)
        else:
            assert isinstance(choice, str)
            assert choice or not failed


def test_an_address_of_several_is_taken_apart_again():
    shm = {"kind": "shm", "path": "/run/x.sock"}
    rdma = {"kind": "rdma", "host": "10.0.0.1", "port": "7", "fabric": IB}
    merged = merge("a", [shm, rdma])
    assert merged["kind"] == "auto"
    assert merged["rdma.host"] == "10.0.0.1"
    offer = take_apart(merged)
    assert offer.addresses == {"shm": shm, "rdma": rdma}
    assert offer.side == Side(frozenset({"shm", "rdma"}), "a", IB)


def test_an_address_of_one_is_taken_as_it_is():
    tcp = {"kind": "tcp", "host": "::1", "port": "7"}
    offer = take_apart(tcp)
    assert offer.addresses == {"tcp": tcp}
    assert offer.side == Side(frozenset({"tcp"}), None, None)


@pytest.mark.parametrize("address", [{}, {"kind": "inproc"}, {"kind": ""}])
def test_what_is_no_address_of_a_listener_is_none(address):
    assert take_apart(address) is None


def test_an_address_that_makes_no_sense_offers_nothing():
    offer = take_apart({"kind": "auto", "node": "a", "pigeon.host": "x", "tcp": "y"})
    assert offer.side.kinds == frozenset()
