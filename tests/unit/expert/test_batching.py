"""Batching by hand, by random events, and by simulated AWs and EWs."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.expert import batching
from tarragon_hpc.expert.batching import Batcher, Run, Wait
from tarragon_hpc.expert.cost import BatchCost

WINDOW = 2e-3
ACTIVE = 50e-3


def batcher(layers=8, *, window=WINDOW, min_rows=1024, active=ACTIVE, peers=2):
    made = Batcher(range(layers), max_window_s=window, min_rows=min_rows, active_s=active)
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


def trained():
    """aw1 has come 0.1 ms after aw0 for so long that it is waited for."""
    made = batcher()
    for layer in range(8):
        now = layer * 1.5e-3
        send(made, 0, layer, now)
        decision = made.next(now)
        send(made, 1, layer, now + 1e-4)
        while isinstance(decision, Wait):
            decision = made.next(now + 1e-4)
        made.finished(1e-3, now + 1e-3)
        if len(decision.items) == 1:
            run(made, now + 1e-3)
    return made, 12e-3


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
    assert 0 < made.window_s <= WINDOW
    send(made, 0, 0, now)
    decision = made.next(now)
    assert isinstance(decision, Wait)
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


# Simulated AWs and EWs: attention takes `attention` seconds, a batch `fixed + per_row * rows`


class Simulation:
    def __init__(
        self, *, aws, ews=1, layers=8, attention, fixed, per_row=0.0, window=WINDOW,
        skip=None, seed=0, start=0.02, die_at=math.inf,
    ):  # fmt: skip
        self.random = random.Random(seed)
        self.layers, self.attention, self.fixed, self.per_row = layers, attention, fixed, per_row
        self.skip = skip or {}
        self.ews = [batcher(layers, window=window, peers=aws) for _ in range(ews)]
        self.busy = [False] * ews
        self.missing: dict[int, set[int]] = {}
        self.done = Counter()
        self.batches = self.rows = 0
        self.held = 0.0
        self.reasons = Counter()
        self.events: list[tuple[float, int, str, tuple]] = []
        self.count = itertools.count()
        for aw in range(aws):
            self.at(self.random.random() * start, "layer", aw, 0)
        if die_at < math.inf:
            self.at(die_at, "die", aws - 1)
        self.dead = set()

    def at(self, when, kind, *data):
        heapq.heappush(self.events, (when, next(self.count), kind, data))

    def jitter(self, seconds):
        return seconds * (1 + 0.1 * self.random.random())

    def run(self, seconds):
        while self.events and self.events[0][0] <= seconds:
            now, _, kind, data = heapq.heappop(self.events)
            getattr(self, kind)(now, *data)
        return self

    def layer(self, now, aw, layer):
        """An AW dispatches to the EWs that have work for it, or skips them all."""
        if aw in self.dead:
            return
        share = self.skip.get(aw, 1.0)
        wanted = {ew for ew in range(len(self.ews)) if self.random.random() < share}
        self.missing[aw] = wanted
        for ew in wanted:
            self.ews[ew].arrive(f"aw{aw}", 1, layer, 8, (aw, layer), now)
        if not wanted:
            self.at(now + self.jitter(self.fixed), "answer", -1, aw, layer)
        for ew in wanted:
            self.free(now, ew)

    def answer(self, now, ew, aw, layer):
        self.missing[aw].discard(ew)
        if not self.missing[aw]:
            self.done[aw] += 1
            self.at(now + self.jitter(self.attention), "layer", aw, (layer + 1) % self.layers)

    def free(self, now, ew):
        if self.busy[ew]:
            return
        decision = self.ews[ew].next(now)
        if isinstance(decision, Run):
            self.busy[ew] = True
            self.batches += 1
            self.rows += len(decision.items)
            self.reasons[decision.reason] += 1
            seconds = self.jitter(self.fixed + self.per_row * 8 * len(decision.items))
            self.at(now + seconds, "ran", ew, decision, seconds)
        elif decision.until < math.inf:
            self.at(decision.until, "free", ew)

    def ran(self, now, ew, decision, seconds):
        self.busy[ew] = False
        self.ews[ew].finished(seconds, now)
        for aw, layer in decision.items:
            self.answer(now, ew, aw, layer)
        self.free(now, ew)

    def die(self, now, aw):
        self.dead.add(aw)
        for ew, made in enumerate(self.ews):
            made.leave(f"aw{aw}", 1)
            self.free(now, ew)

    @property
    def per_batch(self):
        return self.rows / self.batches


@pytest.mark.parametrize("seed", range(3))
def test_aws_come_together_where_the_ew_is_the_bottleneck(seed):
    setting = {"aws": 4, "attention": 0.3e-3, "fixed": 0.5e-3, "seed": seed}
    ours, without = Simulation(**setting).run(0.5), Simulation(**setting, window=0).run(0.5)
    assert ours.per_batch > 3.5
    assert ours.done.total() > 1.1 * without.done.total()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "setting",
    [
        {"aws": 1, "attention": 0.3e-3, "fixed": 0.5e-3},
        {"aws": 2, "attention": 1e-3, "fixed": 0.2e-3},  # the EW has time to spare
        {"aws": 2, "attention": 0.3e-3, "fixed": 0.1e-3, "per_row": 0.05e-3},  # saves little
        {"aws": 2, "attention": 0.3e-3, "fixed": 0.5e-3, "skip": {1: 0.1}},  # aw1 has hardly rows
        {"aws": 3, "attention": 0.3e-3, "fixed": 0.3e-3, "skip": {0: 0.5, 1: 0.5, 2: 0.5}},
        {"aws": 1, "layers": 1, "attention": 0.3e-3, "fixed": 0.5e-3},
    ],
)  # fmt: skip
def test_waiting_costs_little_where_it_does_not_pay(setting, seed):
    ours = Simulation(**setting, seed=seed).run(0.5)
    without = Simulation(**setting, seed=seed, window=0).run(0.5)
    assert ours.done.total() > 0.96 * without.done.total()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    aws=st.integers(1, 4),
    ews=st.integers(1, 3),
    layers=st.integers(1, 6),
    attention=st.floats(1e-5, 3e-3),
    fixed=st.floats(1e-5, 3e-3),
    share=st.floats(0.1, 1.0),
    die_at=st.floats(0, 0.1),
)
def test_lock_step_never_stops(seed, aws, ews, layers, attention, fixed, share, die_at):
    """EWs and AWs that wait for each other's replies keep going, also when an AW dies."""
    skip = dict.fromkeys(range(aws), share)
    sim = Simulation(
        aws=aws, ews=ews, layers=layers, attention=attention, fixed=fixed, skip=skip, seed=seed,
        die_at=die_at if aws > 1 else math.inf,
    )  # fmt: skip
    seconds = 60 * (attention + aws * fixed)
    sim.run(0.15)
    before = sim.done.copy()
    sim.run(0.15 + seconds)
    for aw in set(range(aws)) - sim.dead:
        assert sim.done[aw] > before[aw] + 5


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
