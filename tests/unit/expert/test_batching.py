"""Batching by hand and by random events; simulated AWs and EWs are in a file of their own."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.expert import batching
from tarragon_hpc.expert.batching import Batcher, Run, Wait
from tarragon_hpc.expert.cost import BatchCost

WINDOW = 2e-3
ACTIVE = 50e-3


def batcher(layers=8, *, window=WINDOW, min_rows=1024, active=ACTIVE, peers=2, shares_cpus=False):
    made = Batcher(
        range(layers),
        max_window_s=window,
        min_rows=min_rows,
        active_s=active,
        shares_cpus=shares_cpus,
    )
    for i in range(peers):
        made.join(f"aw{i}", 1)
    return made


def send(made, peer, layer, now, rows=8, *, replay=False, item=None):
    item = (peer, layer) if item is None else item
    assert made.arrive(f"aw{peer}", 1, layer, rows, item, now, replay=replay)


def run(made, now, seconds=1e-3):
    """What runs now; it takes `seconds`."""
    decision = made.next(now)
    assert isinstance(decision, Run)
    made.finished(seconds, now + seconds)
    return decision


def trained(**setting):
    """aw1 has come 0.1 ms after aw0 for so long that it is waited for."""
    made = batcher(**setting)
    return made, practise(made, 0.0)


def practise(made, start, steps=3):
    """So many steps of both AWs, from `start` on; the gap between two steps is learned on its own.

    Returns when aw0 is to come next, for layer 0.
    """
    for number in range(8 * steps):
        now, layer = start + number * 1.5e-3, number % 8
        send(made, 0, layer, now)
        decision = made.next(now)
        send(made, 1, layer, now + 1e-4)
        while isinstance(decision, Wait):
            decision = made.next(now + 1e-4)
        made.finished(1e-3, now + 1e-3)
        if len(decision.items) == 1:
            run(made, now + 1e-3)
    return start + 8 * steps * 1.5e-3


def test_one_aw_never_waits():
    made = batcher(peers=1)
    for step, layer in itertools.product(range(3), range(8)):
        now = step + layer / 100
        send(made, 0, layer, now)
        decision = run(made, now)
        assert (decision.items, decision.reason) == ([(0, layer)], batching.ALONE)
        assert made.window_s == 0


def test_nothing_to_do_waits_for_ever():
    assert batcher().next(1.0) == Wait(math.inf)


def test_the_window_grows_when_the_other_comes_and_then_joins_both():
    made, now = trained()
    send(made, 0, 0, now)
    decision = made.next(now)
    assert isinstance(decision, Wait)
    assert 0 < made.window_s <= WINDOW
    assert now < decision.until <= now + WINDOW
    send(made, 1, 0, now + 1e-4)
    decision = made.next(now + 1e-4)
    assert decision.items == [(0, 0), (1, 0)]
    assert decision.reason == batching.COMPLETE
    assert decision.waited == pytest.approx(1e-4)


def test_the_window_closes_for_an_aw_that_stops_coming():
    made, now = trained()
    waits = 0
    for layer in range(8):
        send(made, 0, layer, now)
        decision = made.next(now)
        if isinstance(decision, Wait):
            waits += 1
            now = decision.until
            decision = made.next(now)
            assert decision.reason == batching.CLOSED
        made.finished(1e-3, now + 1e-3)
        now += 2e-3
    assert waits == 1  # it is expected until it is heard of again
    send(made, 1, 7, now)  # went past all of them
    run(made, now)
    assert made.window_s == 0


@pytest.mark.parametrize("shares_cpus", [False, True])
@pytest.mark.parametrize("unsteady", [False, True])
def test_a_stopped_aw_costs_at_most_one_window(shares_cpus, unsteady):
    """Also one whose gaps vary so much that it could come at any time."""
    made, now = trained(shares_cpus=shares_cpus, active=10.0)
    if unsteady:
        for peer in made._peers.values():
            peer.within.deviation = peer.between.deviation = 1.0
    waited = 0.0
    for number in range(40):  # aw1 was answered last, is connected, and does not come
        send(made, 0, number % 8, now)
        begin = now
        while isinstance(decision := made.next(now), Wait):
            now = decision.until
        waited += now - begin
        assert decision.items == [(0, number % 8)]
        made.finished(1e-3, now + 1e-3)
        now += 1.1e-3
    assert waited <= WINDOW + 1e-9
    now = practise(made, now, steps=20)  # it goes on, and earns trust again
    send(made, 0, 0, now)
    assert isinstance(made.next(now), Wait)


def test_a_lost_aw_is_not_waited_for_and_its_rows_are_dropped():
    made, now = trained()
    send(made, 0, 0, now)
    assert isinstance(made.next(now), Wait)
    made.leave("aw1", 1)
    assert made.next(now).items == [(0, 0)]
    made.finished(1e-3, now)
    send(made, 0, 1, now)
    made.leave("aw0", 1)
    assert made.queued == 0
    assert made.next(now) == Wait(math.inf)


def test_an_idle_aw_is_not_waited_for():
    made, now = trained()
    send(made, 0, 0, now + ACTIVE)
    assert run(made, now + ACTIVE).reason == batching.ALONE


def test_an_aw_is_not_idle_while_it_is_owed_an_answer():
    made, now = trained()
    send(made, 1, 0, now)
    run(made, now, seconds=2 * ACTIVE)
    send(made, 0, 1, now + 2 * ACTIVE)
    assert isinstance(made.next(now + 2 * ACTIVE), Wait)


def test_an_aw_that_is_past_the_layer_is_not_waited_for():
    made, now = trained()
    send(made, 1, 0, now)
    run(made, now)
    send(made, 1, 1, now + 2e-3)
    run(made, now + 2e-3)
    send(made, 0, 0, now + 4e-3)
    assert run(made, now + 4e-3).items == [(0, 0)]


def test_enough_rows_do_not_wait():
    made, now = trained()
    send(made, 0, 0, now, rows=1024)
    assert run(made, now).reason == batching.ENOUGH


def test_replayed_rows_go_first_with_all_of_their_layer():
    made = batcher(peers=3)
    send(made, 0, 2, 1.0)
    send(made, 1, 5, 1.1)
    send(made, 2, 5, 1.2, replay=True)
    decision = run(made, 1.2)
    assert (decision.layer, decision.reason) == (5, batching.REPLAY)
    assert decision.items == [(1, 5), (2, 5)]
    assert run(made, 1.3).layer == 2


def test_aws_behind_go_first_but_not_for_ever():
    made = batcher(min_rows=10**6)
    order = []
    send(made, 0, 3, 1.0)
    for layer in (7, 0, 1, 2):  # aw1 is half a round behind
        send(made, 1, layer, 1.0)
        order.append(run(made, 1.0).layer)
    send(made, 1, 3, 1.0)
    order.append(run(made, 1.0).layer)
    assert order == [7, 0, 1, 2, 3]
    assert made.queued == 0
    send(made, 0, 3, 2.0)
    layers = itertools.cycle([2, 1, 0])
    for _ in range(4):
        send(made, 1, next(layers), 2.0)
        assert run(made, 2.0).layer != 3
    send(made, 1, next(layers), 2.0)
    assert run(made, 2.0).layer == 3


def test_a_prompt_does_not_hold_up_those_that_decode():
    made = batcher()
    send(made, 0, 3, 1.0, rows=8)
    send(made, 1, 1, 1.0, rows=256)
    assert run(made, 1.0).layer == 3


def test_stale_incarnations_never_enter_a_batch():
    made = batcher(peers=0)
    assert made.join("aw0", 2)
    assert not made.join("aw0", 1)
    assert not made.arrive("aw0", 1, 0, 1, "stale", 1.0)
    assert not made.arrive("aw9", 1, 0, 1, "unknown", 1.0)
    assert made.arrive("aw0", 2, 0, 1, "old", 1.0)
    assert made.join("aw0", 3)
    made.leave("aw0", 2)  # the loss of the one before is noticed late
    assert made.arrive("aw0", 3, 0, 1, "new", 1.0)
    assert run(made, 1.0).items == ["new"]


def test_a_new_aw_takes_its_frontier_from_its_first_request():
    made, now = trained()
    made.join("aw2", 1)
    send(made, 0, 0, now)
    send(made, 1, 0, now)
    assert run(made, now).reason == batching.ALONE  # nobody waits for aw2
    send(made, 2, 5, now + 1e-3)
    assert run(made, now + 1e-3).items == [(2, 5)]


def test_a_layer_without_experts_is_refused():
    with pytest.raises(KeyError):
        batcher().arrive("aw0", 1, 99, 1, None, 0.0)


def test_a_window_of_zero_switches_waiting_off():
    made = batcher(window=0)
    for layer in range(8):
        send(made, 0, layer, float(layer))
        run(made, layer)
        send(made, 1, layer, layer + 1e-5)
        run(made, layer + 1e-5)
    assert made.window_s == 0


# Random events


events = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "send", "replay", "leave", "join", "stale"]),
        st.integers(0, 3),  # AW
        st.integers(0, 4),  # layer
        st.integers(1, 40),  # rows
        st.floats(0, 3e-3),  # time since the last event
        st.booleans(),  # the EW is free at this time
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(events)
def test_nothing_is_lost_served_twice_or_served_for_the_dead(script):
    made = Batcher(range(5), max_window_s=WINDOW, min_rows=100, active_s=ACTIVE)
    incarnation = dict.fromkeys(range(4), 1)
    alive = {i: made.join(f"aw{i}", 1) for i in range(4)}
    owed: dict[int, tuple[int, int]] = {}
    now, number, held_since = 0.0, 0, None

    def serve():
        nonlocal held_since
        decision = made.next(now)
        if isinstance(decision, Wait):
            held_since = now if held_since is None else held_since
            assert (decision.until == math.inf) == (not owed)
            assert now < decision.until
            assert decision.until == math.inf or decision.until <= held_since + WINDOW + 1e-9
            return decision
        held_since = None
        for item in decision.items:
            peer, number_of = owed.pop(item)  # KeyError: served twice, or for the dead
            assert alive[peer]
            assert incarnation[peer] == number_of
        made.finished(random.Random(number).random() * 1e-3, now)
        return decision

    for kind, peer, layer, rows, pause, free in script:
        now += pause
        number += 1
        if kind in ("send", "replay"):
            taken = made.arrive(
                f"aw{peer}", incarnation[peer], layer, rows, number, now, replay=kind == "replay"
            )
            assert taken == alive[peer]
            if taken:
                owed[number] = (peer, incarnation[peer])
        elif kind == "leave":
            made.leave(f"aw{peer}", incarnation[peer])
            alive[peer] = False
        elif kind == "join":
            incarnation[peer] += 1
            alive[peer] = made.join(f"aw{peer}", incarnation[peer])
            assert alive[peer]
        else:
            stale = incarnation[peer] - 1
            assert not made.arrive(f"aw{peer}", stale, layer, rows, -1, now)
            made.leave(f"aw{peer}", stale)
        owed = {k: v for k, v in owed.items() if alive[v[0]] and incarnation[v[0]] == v[1]}
        if free:
            serve()
    while owed:  # everybody waits for the window at most
        decision = serve()
        if isinstance(decision, Wait):
            now = decision.until
    assert made.queued == 0


def test_cost_is_what_joining_saves():
    cost = BatchCost()
    assert cost.fixed == 0
    for _ in range(50):
        cost.add(8, 1.0)
    assert cost.fixed == pytest.approx(1.0)  # all of one size: unknown, so all of it
    for rows in itertools.islice(itertools.cycle([8, 16, 32]), 200):
        cost.add(rows, 0.25 + 0.01 * rows)
    assert cost.fixed == pytest.approx(0.25, rel=0.05)
    for rows in itertools.islice(itertools.cycle([100, 300]), 200):
        cost.add(rows, 0.01 * rows)
    assert cost.fixed == pytest.approx(0, abs=0.01)
