"""What a transition means to the gateway, and the run in one word."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.changes import (
    AttentionGone,
    AttentionServing,
    Availability,
    availability,
    diff,
    ranges,
    run_reason,
    run_word,
)


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
        Availability(False, "no attention worker is left"),
        AttentionGone("aw1", 1, "closed"),
    ]
    assert run_word(scenario.state) == "unavailable"


def test_an_expert_without_live_holder_closes_admission_and_says_which(scenario):
    scenario.running()
    (closed,) = changes(scenario, ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    assert closed == Availability(
        False, "no live worker holds experts 2-3 (ew1 dead: killed by SIGKILL)"
    )


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
