"""A plan of faults is a value: seeded, printable, and legal."""

from __future__ import annotations

import pytest

from tarragon_hpc.transport import fault_plan
from tarragon_hpc.transport.fault_plan import Corrupt, Delay, Drop, FaultPlan, Reorder, Rule, Sever


def random_plan(seed, **more):
    shape = {"faults": 40, "messages": 5, "longest_s": 0.5, "bits": 64} | more
    return FaultPlan.random(seed, ["ew0", "ew1"], **shape)


def test_the_first_rule_for_a_message_counts_and_others_are_left_alone():
    plan = FaultPlan((Rule("ew0", "reply", 2, Drop()), Rule("ew0", "reply", 2, Sever())))
    assert plan.at("ew0", "reply", 2) == Drop()
    for other in (("ew1", "reply", 2), ("ew0", "request", 2), ("ew0", "reply", 1)):
        assert plan.at(*other) is None


def test_what_is_printed_is_the_plan():
    plan = random_plan(3)
    assert eval(repr(plan), vars(fault_plan)) == plan


def test_a_seed_is_a_plan():
    assert random_plan(1) == random_plan(1) != random_plan(2)
    rules = [r for seed in range(20) for r in random_plan(seed).rules]
    assert {type(r.action) for r in rules} == {Drop, Delay, Reorder, Corrupt, Sever}
    assert {r.nth for r in rules} == {1, 2, 3, 4, 5}
    for rule in rules:
        assert getattr(rule.action, "bit", 0) < 64
        assert 0 <= getattr(rule.action, "seconds", 0) <= 0.5
    assert {r.direction for r in random_plan(1, directions=["reply"]).rules} == {"reply"}


def test_requests_are_not_reordered_and_messages_count_from_one():
    with pytest.raises(ValueError, match="never reordered"):
        Rule("aw0", "request", 1, Reorder(1.0))
    with pytest.raises(ValueError, match="nth is 0"):
        Rule("ew0", "reply", 0, Drop())
