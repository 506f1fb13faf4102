"""Workers that something outside the run wants to leave."""

from __future__ import annotations

import pytest

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.actions import Drain, HandOver, Load, Publish, Stop
from tarragon_hpc.orchestrator.plan import plan
from tarragon_hpc.orchestrator.policy import Policy
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.status import worker_word
from tests.unit.orchestrator.conftest import Scenario

POLICY = Policy(start_timeout_s=60, job="7", notice_gather_s=0.5)


def in_jobs(scenario: Scenario, **steps: str) -> Scenario:
    """A running run whose workers are steps of job 7, but for those that are named."""
    scenario.started()
    for number, worker in enumerate(scenario.workers):
        step = steps.get(worker, f"7.{number}")
        scenario.happen(ev.WorkerRegistered, worker, 1, 100, "host", {}, step)
    return scenario.loading().ready().told().published().taken()


def notice(scenario: Scenario, *workers: str) -> Scenario:
    """All in the same moment."""
    scenario.now += 1
    for worker in workers:
        scenario.record(ev.WorkerNoticed(scenario.now, worker, 1, "SIGTERM"))
    return scenario


def planned(scenario: Scenario, later: float):
    return plan(scenario.state, scenario.now + later, POLICY)


def test_when_all_are_given_notice_the_run_is_handed_over_at_once(scenario):
    notice(in_jobs(scenario), "aw0", "aw1", "ew0", "ew1")
    assert planned(scenario, 0) == [
        HandOver("job 7 is being taken away: 4 of 4 workers were given notice (SIGTERM)")
    ]
    scenario.happen(ev.DrainBegan, "so", 2.0)
    assert not [a for a in planned(scenario, 1) if isinstance(a, HandOver)]


def test_when_most_are_the_others_are_waited_for_a_moment(scenario):
    notice(in_jobs(scenario), "aw0", "ew0", "ew1")
    assert not [a for a in planned(scenario, 0.4) if isinstance(a, HandOver | Drain | Stop)]
    (action,) = [a for a in planned(scenario, 0.6) if isinstance(a, HandOver)]
    assert "3 of 4" in action.reason


def test_a_run_that_starts_is_handed_over_too(scenario):
    scenario.started()
    for worker in scenario.workers:
        scenario.happen(ev.WorkerRegistered, worker, 1, 100, "host", {}, "7.0")
    notice(scenario, *scenario.workers)
    assert [type(a) for a in planned(scenario, 0)] == [HandOver]


def test_workers_of_other_jobs_do_not_count(scenario):
    notice(in_jobs(scenario, ew0="8.0", ew1="9.0"), "aw0", "aw1")
    assert [type(a) for a in planned(scenario, 0)] == [HandOver]


def test_the_jobs_of_single_workers_may_all_be_preempted(scenario):
    everyone = {w: f"{20 + n}.0" for n, w in enumerate(scenario.workers)}
    notice(in_jobs(scenario, **everyone), *scenario.workers)
    assert not [a for a in planned(scenario, 1) if isinstance(a, HandOver)]


def test_one_aw_is_drained_for_the_others_to_go_on(scenario):
    notice(in_jobs(scenario), "aw0")
    assert planned(scenario, 0.4) == []
    assert planned(scenario, 0.6) == [Drain("aw0", 1, "SIGTERM")]
    assert worker_word(scenario["aw0"]) == "called away"


def test_the_only_aw_serves_until_it_is_killed(scenario):
    in_jobs(scenario)
    scenario.happen(ev.WorkerLost, "aw1", 1, "connection", "gone")
    notice(scenario, "aw0")
    assert not [a for a in planned(scenario, 0.6) if isinstance(a, Drain | Stop)]


def test_an_ew_goes_once_others_hold_what_it_holds():
    scenario = notice(in_jobs(Scenario(Rules(on_missing="load"))), "ew1")
    loads = [a for a in planned(scenario, 0) if isinstance(a, Load)]
    assert [(a.worker, a.experts) for a in loads] == [("ew0", (2, 3))]
    scenario.happen(ev.LoadAsked, "ew0", 1, [2, 3], "so")
    assert not [a for a in planned(scenario, 1) if isinstance(a, Stop | Publish)]
    scenario.happen(ev.HoldingReported, "ew0", 1, [0, 1, 2, 3])
    (publish,) = [a for a in planned(scenario, 0) if isinstance(a, Publish)]
    assert publish.table == (("ew0",),) * 4
    scenario.happen(ev.TablePublished, 2, [list(row) for row in publish.table])
    assert not [a for a in planned(scenario, 0) if isinstance(a, Stop)]
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.TableSent, worker, 1, 2)
        scenario.happen(ev.TableTaken, worker, 1, 2)
    assert planned(scenario, 0) == [Stop("ew1", 1, POLICY.stop_grace_s, "SIGTERM")]


def test_shadows_answer_for_an_ew_at_once():
    scenario = notice(in_jobs(Scenario(shadows=(0, 1, 2, 3))), "ew0")
    (publish,) = [a for a in planned(scenario, 0) if isinstance(a, Publish)]
    assert publish.table == (("ew1",),) * 4


def test_a_store_is_forgotten_and_then_stopped():
    scenario = notice(in_jobs(Scenario(stores=2)), "cs0")
    assert scenario.state.stores == {"cs1": 1}
    for worker in ("aw0", "aw1"):
        scenario.happen(ev.StoresSent, worker, 1, {"cs1": 1})
    assert planned(scenario, 0) == [Stop("cs0", 1, POLICY.stop_grace_s, "SIGTERM")]


@pytest.mark.parametrize("worker", ["aw0", "ew0"])
def test_the_next_incarnation_was_not_given_notice(scenario, worker):
    notice(in_jobs(scenario), worker)
    scenario.happen(ev.WorkerLost, worker, 1, "connection", "gone")
    scenario.happen(ev.WorkerExited, worker, 1, "exit status 0")
    scenario.happen(ev.WorkerStarted, worker, 2, 200)
    assert scenario[worker].noticed == 0
