"""When a run that serves nobody ends by itself, and when it never does."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import GiveUp
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules

from .conftest import Scenario

POLICY = Policy(start_timeout_s=60, max_restarts=0, hopeless_s=100)


def given_up(scenario, later, policy=POLICY):
    actions = plan(scenario.state, scenario.now + later, policy)
    return [action.reason for action in actions if isinstance(action, GiveUp)]


def lose(scenario, *workers, incarnation=1):
    for worker in workers:
        scenario.happen(ev.WorkerExited, worker, incarnation, "killed")
        scenario.happen(ev.WorkerGivenUp, worker, incarnation, "given up: killed")


def test_without_any_aw_for_long_enough():
    scenario = Scenario().running()
    lose(scenario, "aw0")
    assert scenario.state.down_since is None
    scenario.happen(ev.WorkerExited, "aw1", 1, "killed")
    since = scenario.now
    assert scenario.state.down_since == since
    scenario.happen(ev.WorkerGivenUp, "aw1", 1, "given up: killed")
    assert given_up(scenario, 98) == []
    assert given_up(scenario, 100) == [
        "no attention worker serves for 101 s and nothing is on its way "
        "(aw0 given up: killed; aw1 given up: killed)"
    ]
    assert given_up(scenario, 1e6, Policy(start_timeout_s=60)) == []  # without such a limit
    assert replay(scenario.events) == scenario.state


def test_who_arrives_is_waited_for_and_who_is_queued_is_not():
    scenario = Scenario().running()
    lose(scenario, "aw0")
    scenario.happen(ev.WorkerExited, "aw1", 1, "killed")
    scenario.happen(ev.WorkerStarted, "aw1", 2, pid=None)
    assert given_up(scenario, 1000) == []
    scenario.happen(ev.WorkerQueued, "aw1", 2, "9", "Resources")
    (reason,) = given_up(scenario, 1000)
    assert "aw1 queued as job 9: Resources" in reason
    scenario.happen(ev.WorkerQueued, "aw1", 2, "9", "")
    assert given_up(scenario, 1000) == []


def test_the_clock_begins_anew_when_somebody_served():
    scenario = Scenario().running()
    lose(scenario, "aw0")
    scenario.happen(ev.WorkerExited, "aw1", 1, "killed")
    scenario.happen(ev.WorkerStarted, "aw1", 2, pid=None)
    scenario.now += 99
    scenario.happen(ev.WorkerRegistered, "aw1", 2, 1, "n1", {})
    scenario.happen(ev.WorkerReady, "aw1", 2, {})
    scenario.happen(ev.TableTaken, "aw1", 2, 1)
    assert scenario.state.down_since is None
    lose(scenario, "aw1", incarnation=2)
    assert given_up(scenario, 95) == []
    assert given_up(scenario, 105) != []


@pytest.mark.parametrize(
    ("on_missing", "lost", "hopeless"),
    [
        ("wait", ["ew1"], True),
        ("load", ["ew1"], True),
        ("mask", ["ew1"], False),
        ("mask", ["ew0", "ew1"], True),
    ],
)
def test_experts_that_nobody_holds(on_missing, lost, hopeless):
    scenario = Scenario(Rules(on_missing=on_missing)).running()
    lose(scenario, *lost)
    assert bool(given_up(scenario, 1000)) == hopeless


def test_experts_that_are_being_loaded_are_waited_for():
    scenario = Scenario(Rules(on_missing="load")).running()
    lose(scenario, "ew1")
    scenario.happen(ev.LoadAsked, "ew0", 1, [2, 3], "no live worker holds them")
    assert given_up(scenario, 1000) == []
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1, 2, 3])
    assert scenario.state.down_since is None
