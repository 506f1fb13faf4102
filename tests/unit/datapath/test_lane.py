"""The fast lane over real shared memory: the same sums, and every oddity handed over."""

from __future__ import annotations

import pytest

from tarragon_hpc.datapath.combine import STORAGE
from tarragon_hpc.errors import DispatchRefused, ExpertUnavailable
from tarragon_hpc.wire import dispatch as wire

pytestmark = pytest.mark.native

TWO = [["ew0"], ["ew0"], ["ew1"], ["ew1"]]


@pytest.fixture
def two(shm_sim):
    """A REFE and two EWs with two experts each; top-2, slots of 4 rows, 2 slots."""
    shm_sim.ew("ew0")
    shm_sim.ew("ew1")
    refe = shm_sim.refe()
    assert refe.apply_table(*shm_sim.table(1, TWO)) == {}
    return shm_sim, refe


@pytest.mark.parametrize("dtype", sorted(STORAGE))
def test_the_sum_is_right_on_both_ways(shm_sim, batch, dtype):
    for n in range(3):
        shm_sim.ew(f"ew{n}")
    refe = shm_sim.refe(dtype=dtype, hidden=20, slot_rows=8)
    refe.apply_table(*shm_sim.table(1, [["ew0"], ["ew1"], ["ew2"], ["ew0"]]))
    ways = set()
    for tokens in (0, 1, 3, 8, 9, 40, 2):
        b = batch(tokens, hidden=20, dtype=dtype, seed=tokens)
        ticket = b.dispatch(refe)
        ways.add(ticket.call is not None)
        b.combine(refe, ticket)
        assert b.right
    assert ways == {True, False}
    sequences = [h.sequence for ew in shm_sim.ews.values() for h in ew.requests]
    assert sorted(sequences) == list(range(1, len(sequences) + 1))
    assert refe.stats.messages == len(sequences)
    assert set(refe.stats.latency_s) == {"ew0", "ew1", "ew2"}
    assert all(0 < s < 5 for s in refe.stats.latency_s.values())


def test_two_open_tickets_share_the_slots(two, batch):
    _, refe = two
    for seed in range(5):
        a, b = batch(4, seed=seed), batch(4, seed=100 + seed)
        first, second = a.dispatch(refe), b.dispatch(refe)
        a.combine(refe, first)
        b.combine(refe, second)
        assert a.right
        assert b.right


def test_no_free_slot_goes_the_slow_way(two, batch):
    sim, refe = two
    for ew in sim.ews.values():
        ew.mode = "mute"
    batches = [batch(4, seed=n) for n in range(3)]
    tickets = [b.dispatch(refe) for b in batches]
    assert [t.call is not None for t in tickets] == [True, True, False]
    for ew in sim.ews.values():
        ew.mode = "answer"
    sim._bells[0].ring()
    for b, ticket in zip(batches, tickets, strict=True):
        b.combine(refe, ticket)
        assert b.right


def test_a_loss_while_waiting_fails_the_step_only(two, batch):
    sim, refe = two
    sim.ews["ew1"].mode = "mute"
    b = batch(4)
    ticket = b.dispatch(refe)
    assert ticket.call is not None
    sim.kill("ew1")
    with pytest.raises(ExpertUnavailable, match="ew1: "):
        b.combine(refe, ticket)
    for seed in range(4):
        assert batch(4, only=[0, 1], seed=seed).run(refe).right
    with pytest.raises(ExpertUnavailable, match="ew1: "):
        batch(4).run(refe)


def test_with_a_loss_the_other_open_ticket_still_counts(two, batch):
    sim, refe = two
    a, b = batch(4, only=[2, 3]), batch(4, only=[0, 1])
    sim.ews["ew1"].mode = "mute"
    first, second = a.dispatch(refe), b.dispatch(refe)
    sim.kill("ew1")
    with pytest.raises(ExpertUnavailable):
        a.combine(refe, first)
    b.combine(refe, second)
    assert b.right


def test_a_mute_ew_is_given_up_and_connected_anew(two, batch):
    sim, refe = two
    sim.ews["ew1"].mode = "mute"
    with pytest.raises(ExpertUnavailable, match=r"ew1: "):
        batch(4).run(refe)
    assert refe.stats.deadlines
    sim.ews["ew1"].mode = "answer"
    sim._bells[0].ring()
    refe.apply_table(*sim.table(2, TWO))
    for seed in range(4):
        assert batch(4, seed=seed).run(refe).right


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": wire.STATUS_UNKNOWN_EXPERT}, "does not hold"),
        ({"pairs": 3}, "its reply has 3 rows"),
        ({"hidden": 4}, "its reply has"),
        ({"dtype": 1}, "its reply has"),
    ],
)
def test_a_refusal_is_told_as_on_the_slow_way(two, batch, change, why):
    sim, refe = two
    sim.ews["ew0"].mode = lambda h: h._replace(**change)
    with pytest.raises(DispatchRefused, match=why):
        batch(4, only=[0, 1]).run(refe)
    sim.ews["ew0"].mode = "answer"
    assert batch(4).run(refe).right


@pytest.mark.parametrize("change", [{"sequence": 99}, {"incarnation": 2}, {"epoch": 0}])
def test_a_stale_reply_costs_the_channel(two, batch, change):
    sim, refe = two
    healthy = iter([False, True])
    sim.ews["ew0"].mode = lambda h: h if next(healthy, True) else h._replace(**change)
    assert batch(4, only=[0, 1]).run(refe).right
    assert refe.stats.stale_replies == 1
    assert batch(4).run(refe).right


def test_abandon_gives_the_slots_back(two, batch):
    _, refe = two
    for seed in range(5):
        ticket = batch(4, seed=seed).dispatch(refe)
        refe.abandon(ticket)
        assert batch(4, seed=seed).run(refe).right


def test_a_bad_id_sends_nothing(two, batch):
    sim, refe = two
    bad = batch(4)
    bad.ids[2, 1] = 4
    with pytest.raises(ValueError, match=r"topk_ids\[2, 1\] is 4; experts are 0 to 3"):
        bad.run(refe)
    assert batch(4).run(refe).right
    assert refe.stats.messages == 2
