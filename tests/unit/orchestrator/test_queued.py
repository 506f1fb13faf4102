"""Workers whose own job waits in Slurm's queue: no time runs, nothing is held against them."""

from __future__ import annotations

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import Condemn, GiveUp, Start
from tarragon_hpc.orchestrator.changes import run_reason, run_word
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.state import Phase
from tarragon_hpc.orchestrator.status import describe

POLICY = Policy(start_timeout_s=60, max_restarts=2, backoff_s=2)


def planned(scenario, later=0.0, policy=POLICY):
    return plan(scenario.state, scenario.now + later, policy)


def kinds(scenario, later=0.0):
    return [type(action) for action in planned(scenario, later)]


def queue(scenario, worker="aw1", incarnation=2, reason="Priority", expected="2026-12-01T10:00:00"):
    scenario.happen(ev.WorkerQueued, worker, incarnation, "77", reason, expected)


def replaced(scenario):
    scenario.running().happen(ev.WorkerExited, "aw1", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "aw1", 2, pid=None)
    queue(scenario)
    return scenario


def test_a_queued_replacement_is_waited_for_as_long_as_it_takes(scenario):
    assert planned(replaced(scenario), later=100_000) == []
    status = describe(scenario.state, endpoint=None)
    worker = next(w for w in status["workers"] if w["id"] == "aw1")
    assert (worker["state"], worker["job"], worker["pending_reason"], worker["expected_start"]) == (
        "queued", "77", "Priority", "2026-12-01T10:00:00",
    )  # fmt: skip
    assert run_word(scenario.state) == "degraded"
    assert run_reason(scenario.state) == (
        "aw1 queued as job 77: Priority, expected to start 2026-12-01T10:00:00 "
        "(in place of one that ended: killed by SIGKILL)"
    )


def test_its_time_runs_from_when_the_job_runs(scenario):
    replaced(scenario).now += 1000
    queue(scenario, reason="", expected="")
    assert scenario["aw1"].queued == scenario["aw1"].expected_start == ""
    assert planned(scenario, later=59) == []
    assert [type(a) for a in planned(scenario, later=61)] == [Condemn]


def test_its_own_connection_is_faster_than_the_queue(scenario):
    replaced(scenario).now += 1000
    scenario.happen(ev.WorkerRegistered, "aw1", 2, 5, "n7", {})
    assert (scenario["aw1"].phase, scenario["aw1"].queued) == (Phase.REGISTERED, "")
    queue(scenario)  # a look from before
    assert scenario["aw1"].queued == ""
    assert Condemn not in kinds(scenario, later=55)
    assert kinds(scenario, later=61) == [Condemn]


def test_an_end_in_the_queue_is_no_crash_loop_but_no_storm_either(scenario):
    replaced(scenario)
    for incarnation in range(2, 12):
        scenario.happen(ev.WorkerExited, "aw1", incarnation, "job 77 was cancelled")
        assert Start not in kinds(scenario, later=0.0)
        scenario.now += 40
        start = next(a for a in planned(scenario) if isinstance(a, Start))
        assert start.incarnation == incarnation + 1
        scenario.happen(ev.WorkerStarted, "aw1", incarnation + 1, pid=None)
        queue(scenario, incarnation=incarnation + 1)
    assert len(scenario["aw1"].restarts) == 1  # the one after a death


def test_a_run_that_starts_waits_for_its_jobs(scenario):
    scenario.started()
    queue(scenario, "ew1", 1)
    assert planned(scenario, later=100_000) == []
    assert "ew1 (queued as job 77: Priority" in run_reason(scenario.state)
    scenario.now += 5000
    queue(scenario, "ew1", 1, reason="")
    assert planned(scenario, later=59) == []
    assert [type(a) for a in planned(scenario, later=61)] == [GiveUp]


def test_a_job_that_runs_at_once_is_timed_like_any_start(scenario):
    scenario.started()
    queue(scenario, "ew1", 1, reason="")
    assert scenario["ew1"].job == "77"
    assert [type(a) for a in planned(scenario, later=66)] == [GiveUp]


def change_head(scenario):
    return scenario.happen(ev.HeadChanged, head=2, counted={1: len(scenario.events)}, shift=0.0)


def test_a_new_head_finds_the_job_still_in_the_queue(scenario):
    change_head(replaced(scenario))
    waits = scenario["aw1"]
    assert (waits.phase, waits.awaited, waits.job) == (Phase.STARTING, False, "77")
    scenario.happen(ev.WorkerRegistered, "aw1", 2, 5, "n7", {})
    assert scenario["aw1"].phase is Phase.REGISTERED


def test_who_waited_for_a_place_of_the_old_head_is_started_by_the_new_one(scenario):
    scenario.running().happen(ev.WorkerExited, "aw1", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "aw1", 2, pid=None)
    scenario.happen(ev.WorkerQueued, "aw1", 2, "", "all slots are in use")
    assert run_reason(scenario.state).startswith("aw1 waits: all slots are in use")
    change_head(scenario)
    start = next(a for a in planned(scenario, later=2.0) if isinstance(a, Start))
    assert start.worker == "aw1"
    assert start.incarnation > 2
    assert len(scenario["aw1"].restarts) == 1
