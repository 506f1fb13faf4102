"""Checkpoint stores: how they start, which AW knows which, and what their death changes."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import Abandon, Greet, Publish, SendStores, SendTable, Start
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.changes import availability, diff, run_reason, run_word
from tarragon_hpc.orchestrator.outcomes import outcome
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.state import Phase, RunPhase
from tests.unit.orchestrator.conftest import Scenario

POLICY = Policy(start_timeout_s=60, max_restarts=1)


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(Rules(replicas=1), stores=2)


def planned(scenario: Scenario, later: float = 0.0):
    return plan(scenario.state, scenario.now + later, POLICY)


def perform(scenario: Scenario):
    actions = planned(scenario)
    for action in actions:
        if event := outcome(action, scenario.state, scenario.now):
            scenario.record(event)
    return actions


def test_a_store_serves_as_soon_as_it_is_ready_and_loads_nothing(scenario):
    scenario.started().registered("cs0")
    assert perform(scenario) == [Greet("cs0", 1, 0, None, None, "it registered")]
    assert scenario["cs0"].phase is Phase.LOADING
    scenario.happen(ev.WorkerReady, "cs0", 1, {"capacity": 5})
    assert scenario["cs0"].phase is Phase.SERVING
    assert scenario["cs0"].holds == frozenset()
    assert scenario.state.stores == {"cs0": 1}


def test_a_run_starts_with_all_stores_and_aws_know_them_before_their_first_table(scenario):
    scenario.started().registered().loading().ready("aw0", "ew0", "ew1", "cs1")
    one = {"cs1": 1}
    assert perform(scenario) == [SendStores(w, 1, one, "with cs1.1") for w in ("aw0", "aw1")]
    assert perform(scenario) == []
    scenario.ready("cs0")
    stores = [SendStores(w, 1, {"cs0": 1, "cs1": 1}, "with cs0.1") for w in ("aw0", "aw1")]
    sent, published = perform(scenario)[:2], perform(scenario)
    assert sent == stores
    assert [type(a) for a in published] == [SendTable, SendTable]
    scenario.taken()
    assert scenario.state.phase is RunPhase.STARTING  # aw1 has not loaded yet
    scenario.ready("aw1")
    assert scenario.state.phase is RunPhase.RUNNING
    assert planned(scenario) == []


def test_the_first_table_waits_for_the_stores(scenario):
    scenario.started().registered().loading().ready("ew0", "ew1", "cs0")
    perform(scenario)
    assert planned(scenario) == []
    scenario.ready("cs1")
    assert Publish in {type(a) for a in planned(scenario)}


def test_a_lost_store_is_said_to_the_aws_and_replaced_and_closes_nothing(scenario):
    before = scenario.running().state
    scenario.happen(ev.WorkerLost, "cs1", 1, "process", "its process ended")
    without = "without cs1.1 (its process ended)"
    assert perform(scenario) == [SendStores(w, 1, {"cs0": 1}, without) for w in ("aw0", "aw1")]
    assert perform(scenario) == []
    assert list(diff(before, scenario.state)) == []
    assert availability(scenario.state).serving
    assert run_word(scenario.state) == "degraded"
    assert run_reason(scenario.state) == "cs1 dead: its process ended"
    scenario.happen(ev.WorkerExited, "cs1", 1, "killed by SIGKILL")
    (start,) = planned(scenario)
    assert start == Start("cs1", 2, "in place of cs1.1: killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "cs1", 2, 101)
    scenario.happen(ev.WorkerRegistered, "cs1", 2, 101, "host", {})
    scenario.happen(ev.WorkerWelcomed, "cs1", 2)
    assert planned(scenario) == []
    scenario.happen(ev.WorkerReady, "cs1", 2, {})
    both = {"cs0": 1, "cs1": 2}
    assert perform(scenario) == [SendStores(w, 1, both, "with cs1.2") for w in ("aw0", "aw1")]
    assert planned(scenario, later=1e6) == []
    assert run_word(scenario.state) == "serving"
    assert replay(scenario.events) == scenario.state


def test_a_replaced_aw_knows_nothing_and_is_told_before_it_serves(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "aw0", 2, 101)
    assert scenario["aw0"].stores == {}
    assert planned(scenario) == []
    scenario.happen(ev.WorkerRegistered, "aw0", 2, 101, "host", {})
    scenario.happen(ev.WorkerWelcomed, "aw0", 2)
    stores, table = planned(scenario)
    assert stores == SendStores("aw0", 2, {"cs0": 1, "cs1": 1}, "with cs0.1, with cs1.1")
    assert table == SendTable("aw0", 2, "epoch 1 is published")


def test_a_silent_store_stays_until_it_is_condemned(scenario):
    scenario.running()
    scenario.happen(ev.WorkerSilent, "cs0", 1, 2.0)
    assert planned(scenario) == []
    assert scenario.state.stores == {"cs0": 1, "cs1": 1}
    assert run_reason(scenario.state) == "cs0 unresponsive"
    scenario.happen(ev.WorkerLost, "cs0", 1, "silence", "unresponsive for 10 s")
    assert scenario.state.stores == {"cs1": 1}


def test_a_store_that_is_given_up_leaves_the_run_serving_and_that_is_said(scenario):
    scenario.running()
    for worker in ("cs0", "cs1"):
        scenario.happen(ev.WorkerExited, worker, 1, "exit status 1")
    perform(scenario)
    for worker in ("cs0", "cs1"):
        scenario.happen(ev.WorkerStarted, worker, 2, 101)
        scenario.happen(ev.WorkerExited, worker, 2, "exit status 1")
    assert [type(a) for a in perform(scenario)] == [Abandon, Abandon]
    assert perform(scenario) == []
    assert (run_word(scenario.state), availability(scenario.state).serving) == ("degraded", True)
    reason = run_reason(scenario.state)
    assert reason.startswith("no checkpoint store serves: what a lost AW ran would be computed")
    assert "cs0 given up after 1 restarts" in reason


def test_while_a_run_drains_the_last_aw_is_replaced_but_no_store(scenario):
    scenario.running()
    scenario.happen(ev.DrainBegan, "asked", 30.0)
    scenario.happen(ev.WorkerExited, "cs0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    assert [(type(a), a.worker) for a in perform(scenario)] == [(SendStores, "aw1")]
    assert perform(scenario) == []
    scenario.happen(ev.WorkerExited, "aw1", 1, "killed by SIGKILL")
    assert [(type(a), a.worker) for a in planned(scenario)] == [(Start, "aw0"), (Start, "aw1")]


def test_news_of_an_older_incarnation_change_nothing(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "aw0", 2, 101)
    scenario.happen(ev.StoresSent, "aw0", 1, {"cs0": 1})
    assert (scenario["aw0"].stores, scenario.state.stale) == ({}, 1)


def test_a_store_that_was_given_notice_is_used_to_the_end_if_all_leave(scenario):
    scenario.running()
    for worker in ("cs0", "cs1"):
        scenario.record(ev.WorkerNoticed(scenario.now, worker, 1, "SIGTERM"))
    assert scenario.state.stores == {}
    scenario.happen(ev.DrainBegan, "the job is being taken away", 2.0)
    assert scenario.state.stores == {"cs0": 1, "cs1": 1}
