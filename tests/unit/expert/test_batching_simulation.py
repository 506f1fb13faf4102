"""Batching with simulated AWs and EWs.

Attention takes `attention` seconds, a batch `fixed + per_row * rows`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.expert.batching import Batcher, Run

WINDOW = 2e-3
ACTIVE = 50e-3


def _batcher(layers, window, aws, shares_cpus):
    made = Batcher(
        range(layers), max_window_s=window, min_rows=1024, active_s=ACTIVE, shares_cpus=shares_cpus
    )
    for i in range(aws):
        made.join(f"aw{i}", 1)
    return made


class Simulation:
    def __init__(
        self, *, aws, ews=1, layers=8, attention, fixed, per_row=0.0, window=WINDOW,
        skip=None, seed=0, start=0.02, die_at=math.inf, shares_cpus=False,
    ):  # fmt: skip
        self.random = random.Random(seed)
        self.layers, self.attention, self.fixed, self.per_row = layers, attention, fixed, per_row
        self.skip = skip or {}
        self.ews = [_batcher(layers, window, aws, shares_cpus) for _ in range(ews)]
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


@pytest.mark.parametrize("seed", range(3))
def test_on_shared_cpus_aws_come_together_though_the_ew_has_time_to_spare(seed):
    setting = {"aws": 2, "ews": 2, "attention": 1e-3, "fixed": 0.2e-3, "seed": seed}
    assert Simulation(**setting).run(0.5).per_batch < 1.2
    assert Simulation(**setting, shares_cpus=True).run(0.5).per_batch > 1.8


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
    shares_cpus=st.booleans(),
)
def test_lock_step_never_stops(
    seed, aws, ews, layers, attention, fixed, share, die_at, shares_cpus
):
    """EWs and AWs that wait for each other's replies keep going, also when an AW dies."""
    skip = dict.fromkeys(range(aws), share)
    sim = Simulation(
        aws=aws, ews=ews, layers=layers, attention=attention, fixed=fixed, skip=skip, seed=seed,
        die_at=die_at if aws > 1 else math.inf, shares_cpus=shares_cpus,
    )  # fmt: skip
    seconds = 60 * (attention + aws * fixed + shares_cpus * WINDOW)
    sim.run(0.15)
    before = sim.done.copy()
    sim.run(0.15 + seconds)
    for aw in set(range(aws)) - sim.dead:
        assert sim.done[aw] > before[aw] + 5
