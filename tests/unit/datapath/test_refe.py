"""The REFE in a simulated world: right sums, back-pressure, and life after every failure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.datapath.combine import STORAGE
from tarragon_hpc.errors import (
    DispatchRefused,
    ExpertUnavailable,
)
from tarragon_hpc.wire import dispatch as wire

TWO = [["ew0"], ["ew0"], ["ew1"], ["ew1"]]


@pytest.fixture
def two(sim):
    """A REFE and two EWs with two experts each; top-2, slots of 4 rows, 2 slots."""
    sim.ew("ew0")
    sim.ew("ew1")
    refe = sim.refe()
    assert refe.apply_table(*sim.table(1, TWO)) == {}
    return sim, refe


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tokens=st.integers(0, 30),
    top_k=st.integers(1, 3),
    workers=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    dtype=st.sampled_from(sorted(STORAGE)),
    slots=st.integers(1, 3),
    slot_rows=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_is_right_however_the_rows_travel(
    make_sim, batch, tokens, top_k, workers, dtype, slots, slot_rows, seed
):
    sim = make_sim()
    for n in range(3):
        sim.ew(f"ew{n}")
    refe = sim.refe(top_k=top_k, dtype=dtype, slots=slots, slot_rows=slot_rows)
    refe.apply_table(*sim.table(1, [[f"ew{w}"] for w in workers]))
    for n in range(2):
        assert batch(tokens, top_k=top_k, dtype=dtype, seed=seed + n).run(refe).right
    assert all(ew.most_kept <= slots for ew in sim.ews.values())
    refe.close()


def test_messages_say_who_sends_what_under_which_table(two, batch):
    sim, refe = two
    batch(4).run(refe, layer=7)
    batch(4, only=[0, 1]).run(refe, layer=8)
    headers = [h for ew in sim.ews.values() for h in ew.requests]
    assert {(h.incarnation, h.epoch, h.hidden, h.flags) for h in headers} == {(5, 1, 8, 0)}
    assert sorted(h.sequence for h in headers) == [1, 2, 3]
    assert [h.layer for h in sim.ews["ew0"].requests] == [7, 8]
    assert [h.layer for h in sim.ews["ew1"].requests] == [7]


def test_rows_are_on_their_way_between_dispatch_and_combine(two, batch):
    sim, refe = two
    b = batch(4)
    ticket = b.dispatch(refe)
    assert all(ew.receive() for ew in sim.ews.values())
    b.combine(refe, ticket)
    assert b.right


def test_more_rows_than_slots_take_wait_for_free_slots(two, batch):
    sim, refe = two
    for ew in sim.ews.values():
        ew.mode = "mute"
    b = batch(36)
    ticket = b.dispatch(refe)
    for ew in sim.ews.values():
        ew.receive()
        assert [h.rows <= 4 for h in ew.requests] == [True] * 2
        ew.mode = "answer"
    b.combine(refe, ticket)
    assert b.right
    assert refe.stats.messages == 18


def test_no_rows_are_no_message(two, batch):
    sim, refe = two
    assert batch(0).run(refe).right
    assert refe.stats.messages == 0


def test_tickets_are_combined_in_the_order_of_their_dispatch(two, batch):
    _, refe = two
    a, b = batch(9, seed=1), batch(6, seed=2)
    first, second = a.dispatch(refe), b.dispatch(refe)
    with pytest.raises(RuntimeError, match="is not the oldest open one"):
        b.combine(refe, second)
    a.combine(refe, first)
    b.combine(refe, second)
    assert a.right
    assert b.right
    with pytest.raises(RuntimeError, match="is not the oldest open one"):
        a.combine(refe, first)


def test_a_later_ticket_cannot_take_the_slots_an_earlier_one_needs(two, batch):
    _, refe = two
    big, small = batch(12, only=[0, 1]), batch(1, only=[0, 1])
    first, second = big.dispatch(refe), small.dispatch(refe)
    assert refe.stats.messages == 2  # both of the big one
    big.combine(refe, first)
    small.combine(refe, second)
    assert big.right
    assert small.right


def test_an_abandoned_ticket_gives_its_slots_back(two, batch):
    _, refe = two
    for _ in range(5):
        refe.abandon(batch(4).dispatch(refe))
        assert batch(4).run(refe).right


def test_experts_that_nobody_serves_for_too_long_fail_the_step_and_only_that(two, batch):
    sim, refe = two
    b = batch(4)
    ticket = b.dispatch(refe)
    sim.kill("ew1")
    with pytest.raises(ExpertUnavailable, match="expert 2, 3 .ew1: "):
        b.combine(refe, ticket)
    assert sim.now >= 30
    assert list(refe.down()) == ["ew1"]
    for seed in range(4):  # all slots of the other one are free again
        assert batch(9, only=[0, 1], seed=seed).run(refe).right
    with pytest.raises(ExpertUnavailable, match="expert 2, 3 .ew1: "):
        batch(8).run(refe)
    assert batch(4, only=[0, 1]).run(refe).right


def test_a_reply_that_came_before_the_loss_counts(two, batch):
    sim, refe = two
    b = batch(4)
    ticket = b.dispatch(refe)
    for ew in sim.ews.values():
        ew.step()
    sim.kill("ew1")
    b.combine(refe, ticket)
    assert b.right


def test_the_next_candidate_serves_the_steps_after_a_loss(sim, batch):
    sim.ew("ew0")
    sim.ew("ew1")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0", "ew1"]] * 2 + [["ew1", "ew0"]] * 2))
    assert batch(4).run(refe).right
    sim.kill("ew0")
    assert batch(4).run(refe).right
    assert batch(4).run(refe).right


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (wire.STATUS_UNKNOWN_EXPERT, "does not hold"),
        (wire.STATUS_BAD_REQUEST, "invalid"),
        (wire.STATUS_STALE, "stale"),
        (wire.STATUS_FAILED, "failed"),
        (77, "unknown status 77"),
    ],
)
def test_a_refusal_fails_the_step_and_nothing_else(two, batch, status, why):
    sim, refe = two
    sim.ews["ew0"].mode = lambda h: h._replace(status=status)
    with pytest.raises(DispatchRefused, match=f"ew0 refused a dispatch: .*{why}"):
        batch(4).run(refe)
    sim.ews["ew0"].mode = "answer"
    assert batch(4).run(refe).right
    assert refe.stats.refused == 1


@pytest.mark.parametrize("change", [{"pairs": 3}, {"hidden": 4}, {"dtype": 1}])
def test_rows_of_another_shape_are_refused(two, batch, change):
    sim, refe = two
    sim.ews["ew0"].mode = lambda h: h._replace(**change)
    with pytest.raises(DispatchRefused, match="its reply has"):
        batch(4, only=[0, 1]).run(refe)


@pytest.mark.parametrize(
    "change", [{"sequence": 99}, {"incarnation": 2}, {"epoch": 0}, {"layer": 1}]
)
def test_a_stale_reply_is_dropped_counted_and_costs_the_channel(two, batch, change):
    sim, refe = two
    healthy = iter([False, True])
    sim.ews["ew0"].mode = lambda h: h if next(healthy, True) else h._replace(**change)
    assert batch(4, only=[0, 1]).run(refe).right  # connected anew, and asked again
    assert refe.stats.stale_replies == 1
    assert sim.reports[0].reason.startswith(f"reply of {next(iter(change))}")
    assert refe.down() == {}
    assert batch(4).run(refe).right


def test_tables_connect_drop_and_reconnect(two, batch):
    sim, refe = two
    before = refe.links.channels["ew0"]
    sim.ew("ew2")
    assert refe.apply_table(*sim.table(2, [["ew0"], ["ew0"], ["ew2"], ["ew2"]])) == {}
    assert refe.epoch == 2
    assert refe.links.channels["ew0"] is before
    assert sorted(refe.links.channels) == ["ew0", "ew2"]
    assert batch(4).run(refe).right
    assert sim.ews["ew1"].requests == []
    sim.kill("ew2")
    sim.ew("ew2", incarnation=2)
    assert refe.apply_table(*sim.table(3, [["ew0"], ["ew0"], ["ew2"], ["ew2"]])) == {}
    assert refe.links.channels["ew2"].peer_incarnation == 2
    assert batch(4).run(refe).right


def test_an_ew_that_cannot_be_reached_is_reported_and_passed_over(sim, batch):
    sim.ew("ew0")
    refe = sim.refe()
    ert, peers = sim.table(1, [["ew0"], ["ew0"], ["ew1", "ew0"], ["ew2"]])
    sim.ew("ew1")
    peers |= {"ew1": sim.ews["ew1"].peer()}
    sim.kill("ew1")
    down = refe.apply_table(ert, peers)
    assert down.keys() == {"ew1", "ew2"}
    assert "nobody listens" in down["ew1"]
    assert down["ew2"] == "the table has no address of it"
    assert batch(4, only=[0, 1, 2]).run(refe).right
    with pytest.raises(ExpertUnavailable, match="expert 3 .ew2: the table has no address"):
        batch(4, only=[0, 3]).run(refe)


def test_an_older_table_changes_nothing(two, batch):
    sim, refe = two
    refe.apply_table(*sim.table(5, TWO))
    refe.apply_table(*sim.table(4, [["ew0"]] * 4))
    assert refe.epoch == 5
    batch(4, only=[2, 3]).run(refe)
    assert sim.ews["ew0"].requests == []


def test_a_table_of_another_model_is_an_error(two):
    sim, refe = two
    with pytest.raises(ValueError, match="table of 3 experts, expected 4"):
        refe.apply_table(*sim.table(2, TWO[:3]))


def test_an_expert_that_nobody_ever_held(sim, batch):
    sim.ew("ew0")
    refe = sim.refe()
    refe.apply_table(*sim.table(1, [["ew0"], ["ew0"], ["ew0"], []]))
    with pytest.raises(ExpertUnavailable, match="expert 3 .no worker holds it"):
        batch(4, only=[1, 3]).run(refe)


def test_a_bad_id_gives_the_ticket_up(two, batch):
    _, refe = two
    bad = batch(6)
    bad.ids[5, 1] = -1
    with pytest.raises(ValueError, match=r"topk_ids\[1, 1\] is -1"):  # of the second chunk
        bad.run(refe)
    assert batch(9).run(refe).right


def test_arguments_of_expert_io_are_checked(two, batch):
    _, refe = two
    b = batch(4)
    for name, wrong, why in (
        ("hidden", b.hidden.astype(np.float64), "hidden is float64"),
        ("hidden", b.hidden[:, :4].copy(), r"hidden is float32 \(4, 4\), expected"),
        ("hidden", np.asfortranarray(b.hidden), "not C-contiguous"),
        ("topk_ids", b.ids.astype(np.int64), "topk_ids is int64"),
        ("topk_ids", b.ids[:3].copy(), r"topk_ids is int32 \(3, 2\)"),
        ("topk_weights", b.weights.astype(np.float16), "topk_weights is float16"),
        ("out", b.out[:2].copy(), "out is"),
        ("out", np.frombuffer(b.out.tobytes(), np.float32).reshape(4, 8), "read-only"),
    ):
        args = {
            "hidden": b.hidden,
            "topk_ids": b.ids,
            "topk_weights": b.weights,
            "out": b.out,
        } | {name: wrong}
        with pytest.raises(ValueError, match=why):
            refe.expert_io(0, **args)
    assert refe.stats.dispatches == 0


def test_counters_tell_what_went_over_the_wire(two, batch):
    sim, refe = two
    batch(4, only=[0, 1]).run(refe)
    numbers = refe.stats.snapshot()
    assert numbers["refe_dispatches"] == 1
    assert numbers["refe_rows"] == 4
    assert numbers["refe_request_bytes"] == wire.request_bytes(4, 8, 2, 8, 4)
    assert numbers["refe_reply_bytes"] == wire.reply_bytes(8, 8, 4)
    assert numbers["refe_latency_s_ew0"] == 0.0
    assert set(map(type, numbers.values())) == {float}


def test_close_gives_everything_up(two, batch):
    sim, refe = two
    batch(4).dispatch(refe)
    refe.close()
    for ew in sim.ews.values():
        ew.receive()
        assert [c.lost for c in ew._channels] == ["closed by peer"]
