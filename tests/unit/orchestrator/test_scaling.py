"""More or fewer workers: refused with a reason, or done without leaving anybody behind."""

from __future__ import annotations

import pytest

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import (
    Drain,
    Load,
    Publish,
    Rearrange,
    Remove,
    SendStores,
    SendTable,
    Start,
    Stop,
    Unload,
)
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.changes import run_word
from tarragon_hpc.orchestrator.outcomes import outcome
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.scaling import refuse, scale
from tarragon_hpc.orchestrator.state import Phase
from tests.unit.orchestrator.conftest import Scenario

POLICY = Policy(start_timeout_s=60)


def perform(scenario: Scenario):
    actions = plan(scenario.state, scenario.now, POLICY)
    for action in actions:
        if isinstance(action, Start):
            scenario.happen(ev.WorkerStarted, action.worker, action.incarnation, 100)
        elif event := outcome(action, scenario.state, scenario.now):
            scenario.record(event)
    return actions


def to(scenario: Scenario, role: Role, count: int) -> None:
    assert refuse(scenario.state, role, count) is None
    for event in scale(scenario.state, role, count, scenario.now):
        scenario.record(event)


def routed(scenario: Scenario) -> None:
    """The newest table reaches all AWs."""
    assert [type(a) for a in perform(scenario)] == [SendTable, SendTable]
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.TableTaken, worker, 1, scenario.state.epoch)


@pytest.mark.parametrize(
    ("role", "count", "problem"),
    [
        ("xs", 1, "xs=1: unknown role 'xs'; aw, ew and cs can be scaled"),
        ("cs", 1, "cs=1: the AWs were started without checkpoint stores (checkpoint.stores is 0)"),
        ("cs", 65, "cs=65: must be from 0 to 64"),
        ("ew", 0, "ew=0: must be from 1 to 4096"),
        ("aw", -1, "aw=-1: must be from 1 to 1024"),
        ("aw", 1025, "aw=1025: must be from 1 to 1024"),
        ("ew", 5, "ew=5: more EWs than the model's 4 experts"),
        (
            "ew",
            1,
            "ew=1: experts.shadows is 1, and shadows sit on other EWs; at least ew=2",
        ),
    ],
)
def test_what_cannot_be_is_refused(role, count, problem):
    scenario = Scenario(Rules(shadows=1)).running()
    assert refuse(scenario.state, role, count) == problem


def test_the_memory_of_too_few_ews_is_too_small():
    scenario = Scenario(Rules(capacity=2)).running()
    assert refuse(scenario.state, "ew", 1) == (
        "ew=1: experts.memory holds 2 of the model's 4 experts per EW; at least ew=2"
    )
    assert refuse(scenario.state, "ew", 3) is None


def test_only_a_run_that_serves_is_scaled():
    scenario = Scenario()
    assert "only a run that serves can be scaled; the run is starting" in (
        refuse(scenario.state, "ew", 3) or ""
    )
    scenario.running()
    scenario.happen(ev.DrainBegan, "asked", 3.0)
    assert "the run is draining: asked" in (refuse(scenario.state, "aw", 3) or "")


def test_an_ew_is_added_and_takes_its_share_without_a_gap():
    scenario = Scenario().running()
    to(scenario, Role.EW, 3)
    start, rearrange = perform(scenario)
    assert start == Start("ew2", 1, "the run needs it")
    assert isinstance(rearrange, Rearrange)
    assert rearrange.reason == "ew2 added"
    (moved,) = rearrange.placement.primaries["ew2"]
    before = scenario.state.table[moved]
    assert perform(scenario) == []
    assert scenario.state.table[moved] == before
    scenario.happen(ev.WorkerRegistered, "ew2", 1, 100, "host", {})
    perform(scenario)
    scenario.happen(ev.WorkerReady, "ew2", 1, {"experts": [moved]})
    (publish,) = perform(scenario)
    assert publish.table[moved] == ("ew2",)
    routed(scenario)
    assert perform(scenario) == [Unload(*before, 1, (moved,), "others hold them")]
    scenario.happen(ev.HoldingReported, *before, 1, sorted(scenario.state.placement.of(before[0])))
    assert plan(scenario.state, scenario.now + 1e6, POLICY) == []
    assert replay(scenario.events) == scenario.state


def test_an_ew_leaves_when_others_have_its_experts_and_no_aw_routes_to_it():
    scenario = Scenario().running()
    to(scenario, Role.EW, 1)
    assert [type(a) for a in perform(scenario)] == [Rearrange]
    assert perform(scenario) == [Load("ew0", 1, (2, 3), "its place is there")]
    assert perform(scenario) == []
    assert scenario.state.table[2] == ("ew1",)
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1, 2, 3])
    (publish,) = perform(scenario)
    assert publish == Publish(2, (("ew0",),) * 4, "without ew1 (scaled to ew=1)")
    perform(scenario)
    scenario.happen(ev.TableTaken, "aw0", 1, 2)
    assert perform(scenario) == []  # aw1 still routes to it
    scenario.happen(ev.TableTaken, "aw1", 1, 2)
    assert perform(scenario) == [Stop("ew1", 1, 5.0, "scaled to ew=1")]
    scenario.happen(ev.WorkerLeaving, "ew1", 1, "scaled to ew=1")
    scenario.happen(ev.WorkerExited, "ew1", 1, "exit status 0")
    assert perform(scenario) == [Remove("ew1", 1, "scaled to ew=1")]
    assert list(scenario.state.workers) == ["aw0", "aw1", "ew0"]
    assert perform(scenario) == []
    to(scenario, Role.EW, 2)
    assert perform(scenario)[0] == Start("ew1", 2, "the run needs it")
    assert replay(scenario.events) == scenario.state


def test_an_aw_is_drained_and_not_replaced():
    scenario = Scenario().running()
    to(scenario, Role.AW, 1)
    assert perform(scenario) == [Drain("aw1", 1, "scaled to aw=1")]
    assert perform(scenario) == []
    assert scenario["aw1"].phase is Phase.SERVING
    scenario.happen(ev.WorkerLeaving, "aw1", 1, "scaled to aw=1")
    scenario.happen(ev.WorkerExited, "aw1", 1, "exit status 0")
    assert perform(scenario) == [Remove("aw1", 1, "scaled to aw=1")]
    to(scenario, Role.AW, 3)
    assert [a.worker for a in perform(scenario)] == ["aw1", "aw2"]


def test_the_last_aw_that_serves_is_kept_until_another_does():
    scenario = Scenario().running()
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    to(scenario, Role.AW, 1)
    assert [type(a) for a in perform(scenario)] == [Start]
    assert perform(scenario) == []
    scenario.happen(ev.WorkerReady, "aw0", 2, {})
    perform(scenario)
    scenario.happen(ev.TableTaken, "aw0", 2, 1)
    assert Drain("aw1", 1, "scaled to aw=1") in perform(scenario)


def test_who_was_given_up_does_not_count_and_leaves():
    scenario = Scenario().running()
    scenario.happen(ev.WorkerExited, "aw1", 1, "exit status 1")
    scenario.happen(ev.WorkerGivenUp, "aw1", 1, "given up after 5 restarts in 9 s")
    to(scenario, Role.AW, 2)
    actions = perform(scenario)
    assert [(type(a), a.worker) for a in actions] == [(Start, "aw2"), (Remove, "aw1")]


def test_stores_come_and_go_and_no_aw_is_told_of_one_that_leaves():
    scenario = Scenario(Rules(replicas=2), stores=2).running()
    assert refuse(scenario.state, "cs", 1) == (
        "cs=1: checkpoint.replicas is 2; at least cs=2, or cs=0"
    )
    to(scenario, Role.CS, 3)
    assert perform(scenario) == [Start("cs2", 1, "the run needs it")]
    scenario.happen(ev.WorkerRegistered, "cs2", 1, 100, "host", {})
    perform(scenario)
    assert perform(scenario) == []
    scenario.happen(ev.WorkerReady, "cs2", 1, {})
    three = {"cs0": 1, "cs1": 1, "cs2": 1}
    assert perform(scenario) == [SendStores(w, 1, three, "with cs2.1") for w in ("aw0", "aw1")]
    assert perform(scenario) == []
    to(scenario, Role.CS, 0)
    why = ", ".join(f"without {w}.1 (scaled to cs=0)" for w in three)
    assert perform(scenario) == [SendStores(w, 1, {}, why) for w in ("aw0", "aw1")]
    assert perform(scenario) == [Stop(w, 1, 5.0, "scaled to cs=0") for w in three]
    for worker in three:
        scenario.happen(ev.WorkerExited, worker, 1, "exit status 0")
    assert perform(scenario) == [Remove(w, 1, "scaled to cs=0") for w in three]
    assert run_word(scenario.state) == "serving"
    to(scenario, Role.CS, 2)
    assert perform(scenario) == [Start(w, 2, "the run needs it") for w in ("cs0", "cs1")]
    assert replay(scenario.events) == scenario.state
