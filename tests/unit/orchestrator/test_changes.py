"""What a transition means to the gateway, and the run in one word."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.changes import (
    AttentionDraining,
    AttentionGone,
    AttentionHeard,
    AttentionServing,
    AttentionSilent,
    Availability,
    availability,
    diff,
    ranges,
    run_reason,
    run_word,
)
from tarragon_hpc.orchestrator.rules import Rules
from tests.unit.orchestrator.conftest import Scenario


def changes(scenario, kind, *fields, **named):
    before = scenario.state
    return list(diff(before, scenario.happen(kind, *fields, **named)))


def test_admission_opens_after_the_last_worker_serves(scenario):
    scenario.started().registered().loading().ready().published().taken("aw0")
    assert not availability(scenario.state).serving
    assert run_word(scenario.state) == "starting"
    assert run_reason(scenario.state) == "waiting for aw1 (ready)"
    assert changes(scenario, ev.TableTaken, "aw1", 1, 1) == [
        AttentionServing("aw1", 1),
        Availability(True, ""),
    ]
    assert run_word(scenario.state) == "serving"
    assert run_reason(scenario.state) == ""


def test_a_lost_aw_is_gone_but_the_others_serve(scenario):
    scenario.running()
    assert changes(scenario, ev.WorkerExited, "aw0", 1, "killed by SIGKILL") == [
        AttentionGone("aw0", 1, "killed by SIGKILL")
    ]
    assert run_word(scenario.state) == "degraded"
    assert changes(scenario, ev.WorkerLost, "aw1", 1, "connection", "closed") == [
        Availability(
            False,
            "no attention worker serves: aw0 dead: killed by SIGKILL; aw1 dead: closed",
        ),
        AttentionGone("aw1", 1, "closed"),
    ]
    assert run_word(scenario.state) == "unavailable"
    scenario.happen(ev.WorkerStarted, "aw1", 2, 101)
    assert "aw1 starting (in place of one that ended: closed)" in run_reason(scenario.state)


def test_when_all_of_a_role_are_given_up_nobody_is_left(scenario):
    scenario.running()
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.WorkerExited, worker, 1, "exit status 1")
        scenario.happen(ev.WorkerGivenUp, worker, 1, "given up after 5 restarts in 9 s")
    assert availability(scenario.state) == Availability(
        False,
        "no attention worker is left (aw0 given up after 5 restarts in 9 s; "
        "aw1 given up after 5 restarts in 9 s)",
    )


@pytest.mark.parametrize(
    ("on_missing", "meanwhile"),
    [
        ("load", "they are being loaded, and requests for them wait"),
        ("mask", "they are masked until a replacement serves"),
        ("wait", "requests for them wait until a replacement serves"),
    ],
)
def test_an_expert_without_live_holder_is_said_but_closes_nothing(on_missing, meanwhile):
    scenario = Scenario(Rules(on_missing)).running()
    assert changes(scenario, ev.WorkerExited, "ew1", 1, "killed by SIGKILL") == []
    assert availability(scenario.state).serving
    assert run_word(scenario.state) == "degraded"
    assert run_reason(scenario.state) == (
        f"no live worker holds experts 2-3: {meanwhile}; ew1 dead: killed by SIGKILL"
    )


def test_a_retired_aw_is_said_to_the_gateway_before_it_is_gone(scenario):
    scenario.running()
    assert changes(scenario, ev.WorkerRetired, "aw1", 1, "aw=1") == []
    assert changes(scenario, ev.WorkerDrained, "aw1", 1, "aw=1") == [AttentionDraining("aw1", 1)]
    assert run_word(scenario.state) == "serving"
    assert changes(scenario, ev.WorkerLeaving, "aw1", 1, "aw=1") == [
        AttentionGone("aw1", 1, "aw=1")
    ]
    scenario.happen(ev.WorkerExited, "aw1", 1, "exit status 0")
    assert changes(scenario, ev.WorkerRemoved, "aw1", 1) == []
    assert run_word(scenario.state) == "serving"


def test_a_live_shadow_keeps_admission_open(scenario):
    scenario.started().registered().loading().ready()
    scenario.happen(ev.TablePublished, 1, [["ew0", "ew1"]] * 2 + [["ew1", "ew0"]] * 2)
    scenario.taken()
    assert changes(scenario, ev.WorkerExited, "ew1", 1, "killed by SIGKILL") == []
    assert run_word(scenario.state) == "degraded"


def test_a_silent_worker_makes_the_run_degraded(scenario):
    scenario.running()
    assert changes(scenario, ev.WorkerSilent, "ew1", 1, 2.0) == []
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    assert run_word(scenario.state) == "degraded"
    assert run_reason(scenario.state) == "aw0 dead: killed by SIGKILL; ew1 unresponsive"


def test_a_silent_aw_is_said_to_the_gateway_and_when_it_is_heard_again(scenario):
    scenario.running()
    assert changes(scenario, ev.WorkerSilent, "aw1", 1, 2.0) == [AttentionSilent("aw1", 1)]
    assert changes(scenario, ev.WorkerRetired, "aw1", 1, "aw=1") == []
    assert changes(scenario, ev.WorkerDrained, "aw1", 1, "aw=1") == [AttentionDraining("aw1", 1)]
    assert changes(scenario, ev.WorkerHeard, "aw1", 1) == [AttentionHeard("aw1", 1)]
    scenario.happen(ev.WorkerSilent, "aw0", 1, 2.0)
    condemned = changes(scenario, ev.WorkerLost, "aw0", 1, "silence", "unresponsive for 10 s")
    assert condemned[-1] == AttentionGone("aw0", 1, "unresponsive for 10 s")
    assert AttentionHeard not in map(type, condemned)


def test_an_aw_that_is_silent_when_it_begins_to_serve_serves_first(scenario):
    scenario.started().registered().loading().ready().published().taken("aw0")
    assert changes(scenario, ev.WorkerSilent, "aw1", 1, 2.0) == []
    assert changes(scenario, ev.TableTaken, "aw1", 1, 1) == [
        AttentionServing("aw1", 1),
        AttentionSilent("aw1", 1),
        Availability(True, ""),
    ]
    assert changes(scenario, ev.WorkerHeard, "aw1", 1) == [AttentionHeard("aw1", 1)]


def test_draining_closes_admission_first_and_ends_in_a_word(scenario):
    scenario.running()
    assert changes(scenario, ev.DrainBegan, "asked", 3.0) == [
        Availability(False, "the run is draining: asked")
    ]
    assert run_word(scenario.state) == "draining"
    scenario.happen(ev.StopBegan, "drained", failed=False)
    assert run_word(scenario.state) == "stopping"
    assert changes(scenario, ev.WorkerStopAsked, "aw0", 1, "drained") == [
        AttentionGone("aw0", 1, "drained")
    ]
    scenario.happen(ev.RunEnded)
    assert run_word(scenario.state) == "ended"


def test_a_failed_start_ends_as_failed(scenario):
    scenario.started()
    scenario.happen(ev.StopBegan, "aw0 died", failed=True)
    scenario.happen(ev.RunEnded)
    assert run_word(scenario.state) == "failed"


@pytest.mark.parametrize(
    ("experts", "words"),
    [([], ""), ([3], "3"), ([0, 1, 2, 5, 8, 7], "0-2,5,7-8"), ([3, 1], "1,3")],
)
def test_ranges_of_experts(experts, words):
    assert ranges(experts) == words
