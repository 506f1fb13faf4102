"""What is to be done in a state, and why."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import (
    EndRun,
    Fence,
    GiveUp,
    Greet,
    Publish,
    SendTable,
    Start,
    Stop,
)
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy

POLICY = Policy(start_timeout_s=60, exit_wait_s=0.5, exit_limit_s=8, stop_grace_s=5)


def planned(scenario, later: float = 0.0):
    return plan(scenario.state, scenario.now + later, POLICY)


def test_first_everybody_is_started(scenario):
    reason = "the run needs it"
    assert planned(scenario) == [Start(w, 1, reason) for w in ("aw0", "aw1", "ew0", "ew1")]
    assert planned(scenario.started()) == []


def test_who_registers_is_greeted_and_an_ew_told_its_experts(scenario):
    scenario.started().registered("aw0", "ew1")
    assert planned(scenario) == [
        Greet("aw0", 1, 0, None, None, "it registered"),
        Greet("ew1", 1, 0, (2, 3), (), "it registered"),
    ]
    assert planned(scenario.loading("aw0", "ew1")) == []


def test_the_table_waits_for_all_ews_and_goes_to_all_aws_that_listen(scenario):
    scenario.started().registered("aw0", "ew0", "ew1").loading("aw0", "ew0", "ew1").ready("ew0")
    assert planned(scenario) == []
    scenario.ready("ew1")
    table = (("ew0",), ("ew0",), ("ew1",), ("ew1",))
    assert planned(scenario) == [Publish(1, table, "all 2 EWs are ready")]
    scenario.published()
    assert planned(scenario) == [SendTable("aw0", 1, "epoch 1 is published")]
    scenario.happen(ev.TableSent, "aw0", 1, 1)
    assert planned(scenario) == []
    scenario.registered("aw1").loading("aw1")
    assert planned(scenario) == [SendTable("aw1", 1, "epoch 1 is published")]


def test_nothing_is_to_be_done_about_a_running_run(scenario):
    assert planned(scenario.running(), later=10_000) == []


def test_a_death_during_the_start_ends_the_start_at_once(scenario):
    scenario.started().registered("ew0")
    scenario.happen(ev.WorkerExited, "aw1", 1, "exit status 2")
    assert planned(scenario) == [GiveUp("aw1 died during the start: exit status 2")]


def test_a_lost_connection_waits_for_the_exit_that_explains_it_but_not_for_ever(scenario):
    scenario.started().registered().loading()
    scenario.happen(ev.WorkerLost, "aw1", 1, "connection", "its connection was closed")
    assert planned(scenario) == []
    assert planned(scenario, later=1.0) == [Fence("aw1", 1, "its connection was closed")]
    scenario.happen(ev.WorkerFenced, "aw1", 1)
    assert planned(scenario) == []
    assert planned(scenario, later=10) == [
        GiveUp("aw1 died during the start: its connection was closed"),
    ]


def test_a_start_that_takes_too_long_says_who_is_missing(scenario):
    scenario.started().registered("aw0")
    missing = "aw0 (registered), aw1 (starting), ew0 (starting), ew1 (starting)"
    assert planned(scenario, later=61) == [
        GiveUp(f"not serving after 60 s: {missing}", (("aw1", 1), ("ew0", 1), ("ew1", 1)))
    ]


@pytest.mark.parametrize(("failed", "grace"), [(False, 5), (True, 0.0)])
def test_a_stop_reaches_everybody_who_lives(scenario, failed, grace):
    scenario.running()
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    scenario.happen(ev.StopBegan, "enough", failed=failed)
    assert planned(scenario) == [Stop(w, 1, grace, "enough") for w in ("aw0", "aw1", "ew0")]


def test_a_run_ends_when_every_process_is_known_to_be_gone(scenario):
    scenario.running()
    scenario.happen(ev.StopBegan, "enough", failed=False)
    for worker in ("aw0", "aw1", "ew0", "ew1"):
        scenario.happen(ev.WorkerStopAsked, worker, 1, "enough")
    for worker in ("aw0", "aw1", "ew0", "ew1"):
        scenario.happen(ev.WorkerLost, worker, 1, "connection", "its connection was closed")
    assert planned(scenario) == []
    for worker in ("aw0", "aw1", "ew0"):
        scenario.happen(ev.WorkerExited, worker, 1, "exit status 0")
    assert planned(scenario) == []
    scenario.happen(ev.WorkerExited, "ew1", 1, "exit status 0")
    assert planned(scenario) == [EndRun("enough")]
    scenario.happen(ev.RunEnded)
    assert planned(scenario) == []


def test_who_says_goodbye_but_lingers_is_fenced_after_the_grace(scenario):
    scenario.running()
    scenario.happen(ev.WorkerLeaving, "aw0", 1, "bye")
    scenario.happen(ev.WorkerLost, "aw0", 1, "connection", "its connection was closed")
    assert planned(scenario, later=4) == []
    assert planned(scenario, later=6) == [Fence("aw0", 1, "bye")]


def test_workers_that_were_never_started_do_not_hold_up_the_end(scenario):
    scenario.started("aw0")
    scenario.happen(ev.WorkerExited, "aw0", 1, "exit status 1")
    scenario.happen(ev.StopBegan, "no", failed=True)
    assert planned(scenario) == [EndRun("no")]
