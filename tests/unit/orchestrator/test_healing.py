"""A failure step by step: fence, table, replacement, copies; each with its reason."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import (
    Abandon,
    Condemn,
    Fence,
    Greet,
    Load,
    Publish,
    Rearrange,
    SendTable,
    Start,
    Unload,
)
from tarragon_hpc.orchestrator.outcomes import outcome
from tarragon_hpc.orchestrator.placement import Placement
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.state import Phase
from tests.unit.orchestrator.conftest import Scenario

POLICY = Policy(start_timeout_s=60, exit_wait_s=0.5, stopped_grace_s=10, max_restarts=2)
ALL = (0, 1, 2, 3)


def planned(scenario: Scenario, later: float = 0.0, policy: Policy = POLICY):
    return plan(scenario.state, scenario.now + later, policy)


def perform(scenario: Scenario, later: float = 0.0, policy: Policy = POLICY):
    """What is planned, done; a start gets a process."""
    scenario.now += later
    actions = planned(scenario, policy=policy)
    for action in actions:
        if isinstance(action, Start):
            scenario.happen(ev.WorkerStarted, action.worker, action.incarnation, 100)
        elif event := outcome(action, scenario.state, scenario.now):
            scenario.record(event)
    return actions


def taken(scenario: Scenario) -> None:
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.TableTaken, worker, 1, scenario.state.epoch)


def die(scenario: Scenario, worker: str, incarnation: int = 1) -> None:
    scenario.happen(ev.WorkerLost, worker, incarnation, "process", "its process ended")
    scenario.happen(ev.WorkerExited, worker, incarnation, "killed by SIGKILL")


def shadowed(rules: Rules | None = None) -> Scenario:
    return Scenario(rules or Rules(shadows=1), shadows=ALL).running()


def test_first_the_table_then_the_replacement_then_everything_as_before():
    scenario = shadowed()
    die(scenario, "ew1")
    (publish,) = perform(scenario)
    assert publish == Publish(2, (("ew0",),) * 4, "without ew1 (its process ended)")
    assert [type(a) for a in perform(scenario)] == [SendTable, SendTable]
    taken(scenario)
    (start,) = perform(scenario)
    assert start == Start("ew1", 2, "in place of ew1.1: killed by SIGKILL")
    assert perform(scenario) == []
    scenario.happen(ev.WorkerRegistered, "ew1", 2, 101, "host", {"shm": "/s/ew1.2"})
    (greet,) = perform(scenario)
    assert greet == Greet("ew1", 2, 2, (2, 3), (0, 1), "it registered")
    scenario.happen(ev.WorkerReady, "ew1", 2, {"experts": [2, 3], "shadows": [0, 1]})
    (publish,) = perform(scenario)
    assert publish == Publish(3, (("ew0", "ew1"),) * 2 + (("ew1", "ew0"),) * 2, "with ew1")
    assert scenario["ew1"].phase is Phase.SERVING
    perform(scenario)
    taken(scenario)
    assert planned(scenario, later=10_000) == []


def test_a_lost_worker_whose_exit_is_not_known_is_fenced_before_it_is_replaced():
    scenario = shadowed()
    scenario.happen(ev.WorkerLost, "aw1", 1, "connection", "its connection was closed")
    assert planned(scenario) == []
    assert perform(scenario, later=1) == [Fence("aw1", 1, "its connection was closed")]
    assert planned(scenario) == [Start("aw1", 2, "in place of aw1.1: its connection was closed")]


def test_who_is_silent_for_too_long_is_condemned_fenced_and_replaced():
    scenario = shadowed()
    scenario.happen(ev.WorkerSilent, "ew1", 1, 1.0)
    assert planned(scenario, later=9) == []
    scenario.happen(ev.WorkerHeard, "ew1", 1)
    assert planned(scenario, later=60) == []
    scenario.happen(ev.WorkerSilent, "ew1", 1, 1.0)
    (condemn,) = perform(scenario, later=11)
    assert condemn == Condemn("ew1", 1, "silence", "unresponsive for 10 s")
    fence, publish = perform(scenario)
    assert fence == Fence("ew1", 1, "unresponsive for 10 s")
    assert publish.reason == "without ew1 (unresponsive for 10 s)"
    perform(scenario)
    assert planned(scenario) == [Start("ew1", 2, "in place of ew1.1: unresponsive for 10 s")]


def test_a_replacement_that_never_gets_ready_is_started_again():
    scenario = shadowed()
    die(scenario, "aw1")
    assert [type(a) for a in perform(scenario)] == [Start]
    assert planned(scenario, later=59) == []
    (condemn,) = perform(scenario, later=61)
    assert condemn == Condemn("aw1", 2, "time", "not ready after 60 s", (("aw1", 2),))
    assert perform(scenario) == [Fence("aw1", 2, "not ready after 60 s")]
    assert planned(scenario) == []
    assert [type(a) for a in planned(scenario, later=0.5)] == [Start]


def test_restarts_are_at_once_then_slower_and_then_no_more():
    scenario = shadowed()
    policy = Policy(start_timeout_s=60, max_restarts=3, backoff_s=2, backoff_limit_s=3)
    die(scenario, "aw1")
    pauses = []
    for incarnation in (2, 3, 4):
        pause = 0.0
        while not planned(scenario, later=pause, policy=policy):
            pause += 0.5
        pauses.append(pause)
        (start,) = perform(scenario, later=pause, policy=policy)
        assert start.incarnation == incarnation
        scenario.happen(ev.WorkerExited, "aw1", incarnation, "exit status 9")
    assert pauses == [0.0, 2.0, 3.0]
    (abandon,) = perform(scenario, policy=policy)
    assert abandon == Abandon("aw1", 4, "given up after 3 restarts in 10 s: exit status 9")
    assert scenario["aw1"].reason == abandon.reason
    assert planned(scenario, later=10_000, policy=policy) == []


def test_a_worker_that_was_steady_is_replaced_at_once_again():
    scenario = shadowed()
    for incarnation in (1, 2):
        die(scenario, "aw1", incarnation)
        assert [type(a) for a in perform(scenario)] == [Start]
        scenario.happen(ev.WorkerRegistered, "aw1", incarnation + 1, 1, "host", {})
        scenario.happen(ev.WorkerReady, "aw1", incarnation + 1, {})
        scenario.happen(ev.TableTaken, "aw1", incarnation + 1, 1)
        assert scenario["aw1"].phase is Phase.SERVING
        scenario.now += 5
    assert len(scenario["aw1"].restarts) == 2


def test_a_node_that_loses_worker_after_worker_is_not_fed_for_ever():
    scenario = shadowed()
    policy = Policy(start_timeout_s=60, max_restarts=2, node_factor=1)
    for worker in ("aw0", "aw1"):
        die(scenario, worker)
        assert [type(a) for a in perform(scenario, policy=policy)] == [Start]
    die(scenario, "ew1")
    perform(scenario, policy=policy)
    (abandon,) = perform(scenario, policy=policy)
    assert abandon.reason == "given up after 2 restarts on node host in 5 s: killed by SIGKILL"


def test_missing_experts_are_loaded_where_there_is_most_room_and_dropped_when_they_are_back():
    scenario = Scenario().running()
    die(scenario, "ew1")
    publish, load = perform(scenario)
    assert publish.table == (("ew0",), ("ew0",), (), ())
    assert load == Load("ew0", 1, (2, 3), "no live worker holds experts 2-3")
    perform(scenario)
    taken(scenario)
    (start,) = perform(scenario)
    assert isinstance(start, Start)
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1, 2, 3])
    (publish,) = perform(scenario)
    assert publish.table == (("ew0",),) * 4
    assert publish.reason == "other holders of experts 2-3"
    perform(scenario)
    taken(scenario)
    scenario.happen(ev.WorkerReady, "ew1", 2, {"experts": [2, 3], "shadows": []})
    (publish,) = perform(scenario)
    assert publish.table == (("ew0",), ("ew0",), ("ew1",), ("ew1",))
    perform(scenario)
    scenario.happen(ev.TableTaken, "aw0", 1, 4)
    assert perform(scenario) == []  # aw1 may still ask for them there
    scenario.happen(ev.TableTaken, "aw1", 1, 4)
    assert perform(scenario) == [Unload("ew0", 1, (2, 3), "others hold them")]
    assert scenario["ew0"].holds == {0, 1}
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1])
    assert planned(scenario, later=10_000) == []


@pytest.mark.parametrize("on_missing", ["wait", "mask"])
def test_nothing_is_loaded_if_that_is_not_wanted(on_missing):
    scenario = Scenario(Rules(on_missing)).running()
    die(scenario, "ew1")
    assert [type(a) for a in perform(scenario)] == [Publish]
    perform(scenario)
    taken(scenario)
    assert [type(a) for a in perform(scenario)] == [Start]


def test_a_load_that_fails_is_asked_again_one_by_one_and_then_later():
    scenario = Scenario().running()
    die(scenario, "ew1")
    perform(scenario)
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1], "no space")
    loads = [a for a in perform(scenario) if isinstance(a, Load)]
    assert [a.experts for a in loads] == [(2,), (3,)]  # one of them may do
    for _ in loads:
        scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1], "no space")
    assert Load not in map(type, perform(scenario))
    assert [a.experts for a in perform(scenario, later=6) if isinstance(a, Load)] == [(2,), (3,)]


def test_who_does_not_answer_an_order_is_not_counted_on_until_it_does():
    scenario = Scenario().running()
    scenario.happen(ev.WorkerAdded, "ew2", 0, "ew=3")
    primaries = {"ew0": [0, 1], "ew1": [2, 3], "ew2": []}
    scenario.happen(ev.PlacementChanged, primaries, {w: [] for w in primaries}, "ew2 added")
    scenario.happen(ev.WorkerStarted, "ew2", 1, 100)
    scenario.happen(ev.WorkerReady, "ew2", 1, {"experts": []})
    die(scenario, "ew1")
    loads = [a for a in perform(scenario) if isinstance(a, Load)]
    assert [(a.worker, a.experts) for a in loads] == [("ew2", (2, 3))]
    perform(scenario)
    taken(scenario)
    assert [type(a) for a in perform(scenario)] == [Start]
    patient = Policy(start_timeout_s=600, load_timeout_s=20)
    assert planned(scenario, later=10, policy=patient) == []
    (load,) = perform(scenario, later=21, policy=patient)
    assert (load.worker, load.experts) == ("ew0", (2, 3))
    scenario.happen(ev.HoldingReported, "ew2", 1, [2, 3])
    assert [type(a) for a in perform(scenario, policy=patient)] == [Publish]
    assert scenario.state.table[2] == ("ew2",)


def test_without_room_an_idle_copy_gives_way():
    rules = Rules(shadows=1, capacity=3, frequencies=[9.0, 9, 9, 1])
    scenario = Scenario(rules, shadows=(0, 2)).running()
    assert scenario["ew0"].holds == {0, 1, 2}
    die(scenario, "ew1")
    actions = perform(scenario)
    assert [type(a) for a in actions] == [Publish]
    # Expert 2 has but one holder by now, so that nothing can go: expert 3 waits for ew1.
    assert actions[0].table == (("ew0",), ("ew0",), ("ew0",), ())


def test_who_is_given_up_leaves_its_experts_to_the_others():
    scenario = Scenario(Rules("wait")).running()
    policy = Policy(start_timeout_s=60, max_restarts=0)
    die(scenario, "ew1")
    perform(scenario, policy=policy)
    perform(scenario, policy=policy)
    (abandon,) = perform(scenario, policy=policy)
    assert abandon.reason == "given up after 0 restarts in 0 s: killed by SIGKILL"
    (rearrange,) = perform(scenario, policy=policy)
    assert rearrange == Rearrange(Placement(4, {"ew0": ALL}, {"ew0": ()}), "without ew1")
    assert perform(scenario, policy=policy) == [Load("ew0", 1, (2, 3), "its place is there")]


def test_while_the_run_drains_only_ews_are_replaced():
    scenario = shadowed()
    scenario.happen(ev.DrainBegan, "asked", 9.0)
    die(scenario, "aw1")
    die(scenario, "ew1")
    perform(scenario)
    perform(scenario)
    assert [a.worker for a in perform(scenario)] == ["ew1"]


def test_a_worker_that_leaves_by_itself_is_replaced_too():
    scenario = shadowed()
    scenario.happen(ev.WorkerLeaving, "ew1", 1, "SIGTERM")
    assert perform(scenario)[0].reason == "without ew1 (SIGTERM)"
    scenario.happen(ev.WorkerExited, "ew1", 1, "exit status 0")
    perform(scenario)
    (start,) = perform(scenario)
    assert start == Start("ew1", 2, "in place of ew1.1: exit status 0")
