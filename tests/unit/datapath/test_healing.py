"""Failing EWs are masked: the sums are the right bits, whenever and however they fail."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.datapath.health import Patience
from tarragon_hpc.datapath.report import Clearance, Failover, Suspicion
from tarragon_hpc.errors import DispatchRefused, ExpertUnavailable
from tarragon_hpc.wire import dispatch as wire

CROSSED = [["ew0", "ew1"], ["ew0", "ew1"], ["ew1", "ew0"], ["ew1", "ew0"]]


@pytest.fixture(params=["sim", "shm_sim"])
def two(request):
    """A REFE and two EWs that hold each other's experts as shadows; simulated and over shm."""
    world = request.getfixturevalue(request.param)
    world.ew("ew0")
    world.ew("ew1")
    refe = world.refe()
    assert refe.apply_table(*world.table(1, CROSSED)) == {}
    return world, refe


def of(world, kind):
    return [report for report in world.reports if isinstance(report, kind)]


def test_a_loss_while_waiting_is_masked_by_the_shadows(two, batch):
    world, refe = two
    world.ews["ew1"].mode = "mute"
    b = batch(4)
    ticket = b.dispatch(refe)
    world.kill("ew1")
    b.combine(refe, ticket)
    assert b.right
    survivor = world.ews["ew0"]
    assert [h.flags for h in survivor.requests] == [0, wire.FLAG_REPLAY]
    assert survivor.requests[1].pairs == refe.stats.replayed_pairs
    (suspicion,) = of(world, Suspicion)
    assert (suspicion.peer, suspicion.incarnation) == ("ew1", 1)
    (failover,) = of(world, Failover)
    assert (failover.peer, failover.how) == ("ew1", "lost")
    assert failover.detected <= failover.rerouted <= failover.answered
    assert failover.pairs == refe.stats.replayed_pairs
    for seed in range(4):  # from now on the survivor is asked at once
        assert batch(9, seed=seed).run(refe).right
    assert refe.stats.replayed_pairs == failover.pairs


def test_exactly_the_unanswered_rows_are_sent_again(sim, batch):
    for name in ("ew0", "ew1", "ew2"):
        sim.ew(name)
    refe = sim.refe(slot_rows=4, slots=4)
    refe.apply_table(*sim.table(1, [["ew0"], ["ew0"], ["ew1", "ew2"], ["ew1", "ew2"]]))
    b = batch(8)  # two chunks
    ticket = b.dispatch(refe)
    first = sim.ews["ew1"]
    first.receive()
    first.kept, later = first.kept[:1], first.kept[1:]
    first.answer()
    sim.kill("ew1")
    b.combine(refe, ticket)
    assert b.right
    assert len(later) == 1
    (replay,) = sim.ews["ew2"].requests
    assert replay.pairs == later[0][2].header.pairs
    assert all(h.flags == 0 for h in sim.ews["ew0"].requests)


def test_replies_that_wait_for_a_replay_make_room_for_it(two, batch):
    """All slots of the survivor hold replies of chunks that lack what the other one owed."""
    world, refe = two
    world.ews["ew1"].mode = "mute"
    b = batch(8)  # two chunks, as many as slots
    ticket = b.dispatch(refe)
    world.kill("ew1")
    b.combine(refe, ticket)
    assert b.right
    assert {suspicion.peer for suspicion in of(world, Suspicion)} == {"ew1"}


def test_a_replay_that_is_sent_waits_for_no_slot_any_more(sim, batch):
    sim.ew("ew0")
    sim.ew("ew1").mode = "mute"
    refe = sim.refe()
    refe.apply_table(*sim.table(1, CROSSED))
    b = batch(4)
    ticket = b.dispatch(refe)
    ticket.blocked_since = sim.now
    sim.kill("ew1")
    b.combine(refe, ticket)
    assert b.right
    assert ticket.blocked_since is None


def test_one_part_may_go_to_several(sim, batch):
    for n in range(4):
        sim.ew(f"ew{n}")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0", "ew1"], ["ew0", "ew2"], ["ew0", "ew3"], ["ew0"]]))
    b = batch(4, only=[0, 1, 2])
    ticket = b.dispatch(refe)
    sim.kill("ew0")
    b.combine(refe, ticket)
    assert b.right
    asked = [h.pairs for n in (1, 2, 3) for h in sim.ews[f"ew{n}"].requests]
    assert sum(asked) == 8
    assert len(asked) == 3


def test_a_second_loss_during_the_first_failover(sim, batch):
    for n in range(3):
        sim.ew(f"ew{n}").mode = "mute"
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0", "ew1", "ew2"]] * 4))
    sim.at = {2: lambda: sim.kill("ew0"), 4: lambda: sim.kill("ew1"), 6: sim.unmute}
    assert batch(4).run(refe).right
    assert [r.peer for r in of(sim, Suspicion)] == ["ew0", "ew1"]


def test_a_loss_between_dispatches_costs_nothing(two, batch):
    world, refe = two
    assert batch(4).run(refe).right
    world.kill("ew1")
    assert batch(4).run(refe).right
    assert batch(4).run(refe).right


def test_a_stopped_ew_is_hedged_avoided_and_trusted_again(sim, batch):
    stopped = sim.ew("ew0")
    sim.ew("ew1")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, CROSSED))
    stopped.mode = "mute"
    assert batch(4).run(refe).right
    assert refe.stats.hedged == 1
    assert [r.peer for r in of(sim, Suspicion)] == ["ew0"]
    (failover,) = of(sim, Failover)
    assert failover.how == "overdue"
    for seed in range(5):  # no more waiting for it
        assert batch(4, seed=seed).run(refe).right
    assert refe.stats.hedged == 1
    assert len(stopped.requests) == 1
    assert refe.down() == {}
    stopped.mode = "answer"
    stopped.answer()  # late: dropped, but it says that it lives
    assert batch(4).run(refe).right
    assert [r.peer for r in of(sim, Clearance)] == ["ew0"]
    assert len(stopped.requests) == 2
    # Late again soon: it is avoided for a while even when it owes nothing.
    stopped.mode = "mute"
    assert batch(4).run(refe).right
    stopped.mode = "answer"
    stopped.answer()
    assert batch(4).run(refe).right
    assert len(of(sim, Clearance)) == 1
    sim.now += 1.0
    assert batch(4).run(refe).right
    assert len(of(sim, Clearance)) == 2


def test_a_stopped_process_is_silent_before_its_answer_is_overdue(sim, batch):
    sim.ew("ew0").mode = "mute"
    sim.ew("ew1")
    sim.stopping, sim.tick = True, 0.004
    refe = sim.refe(patience=Patience(ceiling_s=5.0))
    refe.apply_table(*sim.table(1, CROSSED))
    assert batch(4).run(refe).right
    assert 0.04 <= sim.now < 0.07
    (failover,) = of(sim, Failover)
    assert failover.how == "silent"
    assert [r.reason[:20] for r in of(sim, Suspicion)] == ["no answer to probes "]


def test_the_late_answer_counts_if_it_comes_first(sim, batch):
    slow, shadow = sim.ew("ew0"), sim.ew("ew1")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0", "ew1"]] * 4))
    slow.mode = shadow.mode = "mute"
    sim.at = {4: lambda: (setattr(slow, "mode", "answer"), slow.answer())}
    b = batch(4)
    assert b.run(refe).right
    assert refe.stats.hedged >= 1
    assert shadow.requests[0].flags == wire.FLAG_REPLAY
    shadow.mode = "answer"
    shadow.answer()  # the loser's answer lands in an abandoned slot
    for seed in range(6):
        assert batch(9, seed=seed).run(refe).right


def test_the_only_holder_is_waited_for_until_it_is_given_up(sim, batch):
    mute = sim.ew("ew0")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0"]] * 4))
    mute.mode = "mute"
    sim.at = {8: sim.unmute}
    assert batch(4).run(refe).right  # late, but nobody else was there
    assert 1 <= sim.now < 10
    mute.mode = "mute"
    with pytest.raises(ExpertUnavailable):
        batch(4).run(refe)
    assert refe.stats.deadlines >= 1


def test_rows_wait_for_a_table_with_a_holder(sim, batch):
    sim.ew("ew0")
    sim.ew("ew1")
    calls = []

    def poll():
        calls.append(sim.now)
        if len(calls) == 3:
            sim.ew("ew1", incarnation=2)
            refe.apply_table(*sim.table(2, [["ew0"], ["ew0"], ["ew1"], ["ew1"]]))

    refe = sim.refe(poll=poll)
    refe.apply_table(*sim.table(1, [["ew0"], ["ew0"], ["ew1"], ["ew1"]]))
    b = batch(9)
    ticket = b.dispatch(refe)
    sim.kill("ew1")
    b.combine(refe, ticket)
    assert b.right
    assert len(calls) == 3
    assert refe.epoch == 2
    assert batch(9).run(refe).right


def test_a_reason_to_give_up_ends_the_wait(sim, batch):
    sim.ew("ew0")
    refe = sim.refe(poll=lambda: "told to leave")
    refe.apply_table(*sim.table(1, [["ew0"], ["ew0"], ["ew0"], []]))
    with pytest.raises(ExpertUnavailable, match="expert 3 .told to leave."):
        batch(4, only=[1, 3]).run(refe)
    assert batch(4, only=[0, 1]).run(refe).right


def test_masking_leaves_experts_out_and_says_so(sim, batch):
    sim.ew("ew0")
    sim.ew("ew1")
    refe = sim.refe(mask=True)
    refe.apply_table(*sim.table(1, [["ew0"], ["ew0"], ["ew1"], ["ew1"]]))
    assert batch(9).run(refe).right
    assert refe.take_masked() is None
    b = batch(9)
    ticket = b.dispatch(refe)
    sim.kill("ew1")
    b.combine(refe, ticket)
    lost = b.ids >= 2
    assert refe.take_masked().tolist() == lost.sum(1).tolist()
    assert refe.take_masked() is None
    kept = np.where(lost, np.float32(0), b.weights)
    total = b.weights.sum(1, keepdims=True)
    left = kept.sum(1, keepdims=True)
    scale = np.divide(total, left, out=np.zeros_like(total), where=left != 0)
    experts = b.hidden[:, None, :] * (b.ids[:, :, None] + 1) + np.float32(0.5)
    expected = (experts * (kept * scale)[:, :, None]).sum(1)
    np.testing.assert_allclose(b.out, expected, rtol=1e-5)
    again = batch(9).run(refe)
    np.testing.assert_array_equal(again.out, b.out)
    assert refe.stats.masked_pairs == 2 * lost.sum()
    assert batch(4, only=[0, 1]).run(refe).right


def test_a_refusal_is_asked_of_the_next_holder(two, batch):
    world, refe = two
    world.ews["ew0"].mode = lambda h: h._replace(status=wire.STATUS_FAILED)
    assert batch(4).run(refe).right
    world.ews["ew1"].mode = world.ews["ew0"].mode
    with pytest.raises(DispatchRefused, match="its computation failed"):
        batch(4).run(refe)
    world.ews["ew0"].mode = world.ews["ew1"].mode = "answer"
    assert batch(4).run(refe).right


def test_an_ew_that_joins_is_connected_in_the_background(sim, batch):
    sim.ew("ew0")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0"]] * 4))
    jobs = []
    refe.links._spawn = jobs.append
    sim.ew("ew1")
    assert refe.apply_table(*sim.table(2, CROSSED)) == {"ew1": "connecting"}
    assert batch(4).run(refe).right
    assert sim.ews["ew1"].requests == []
    jobs.pop()()
    assert batch(4).run(refe).right
    assert refe.down() == {}
    assert len(sim.ews["ew1"].requests) == 1


FAULTS = st.lists(
    st.tuples(
        st.integers(1, 60),
        st.sampled_from(["kill", "mute", "unmute", "restart", "refuse"]),
        st.integers(0, 3),
    ),
    max_size=14,
)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    faults=FAULTS,
    replicas=st.integers(1, 3),
    slots=st.integers(1, 3),
    slot_rows=st.integers(2, 6),
    seed=st.integers(0, 10**6),
)
def test_whatever_fails_the_sums_are_right(
    make_sim, batch, faults, replicas, slots, slot_rows, seed
):
    rng = random.Random(seed)
    sim = make_sim()
    sim.missing_s = 1e9
    names = [f"ew{n}" for n in range(4)]
    for name in names:
        sim.ew(name)
    epoch = [1]
    incarnations = dict.fromkeys(names, 1)
    order = [rng.sample(names, replicas) for _ in range(6)]

    def publish():
        epoch[0] += 1
        live = [[w for w in c if w in sim.ews] for c in order]
        refe.apply_table(*sim.table(epoch[0], live))

    def restart(name):
        if name in sim.ews:
            sim.kill(name)
        incarnations[name] += 1
        sim.ew(name, incarnation=incarnations[name])

    def fault(kind, name):
        if kind == "restart":
            restart(name)
        elif name in sim.ews:
            ew = sim.ews[name]
            if kind == "kill":
                sim.kill(name)
            elif kind == "mute":
                ew.mode = "mute"
            elif kind == "refuse":
                ew.mode = lambda h: h._replace(sequence=h.sequence + 1)
            else:
                ew.mode = "answer"
                ew.answer()

    def rescue():
        """The head, which is slow: everything dead comes back, everything stopped goes on."""
        for name in names:
            if name not in sim.ews:
                restart(name)
            elif sim.ews[name].mode != "answer":
                sim.ews[name].mode = "answer"
                sim.ews[name].answer()
        publish()

    refe = sim.refe(experts=6, slots=slots, slot_rows=slot_rows, poll=rescue)
    refe.apply_table(*sim.table(1, order))
    sim.at = {}
    for wait, kind, number in faults:
        sim.at.setdefault(wait, []).append((kind, names[number]))
    sim.fault = fault
    for n in range(10):
        tokens = rng.choice([0, 1, 3, 8, 20])
        assert batch(tokens, experts=6, seed=seed + n).run(refe).right
        if rng.random() < 0.3:
            publish()
        if n % 4 == 3 and all(not [w for w in c if w in sim.ews] for c in order[:1]):
            rescue()
    refe.close()
