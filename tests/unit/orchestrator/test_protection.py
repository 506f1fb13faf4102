"""How well requests are protected, from what workers report, and why not."""

from __future__ import annotations

import json

import pytest

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.protection import protection_of
from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.orchestrator.status import describe
from tests.unit.orchestrator.conftest import Scenario

GIB = float(1 << 30)
STATS = {
    Incarnation("aw0", 1): {"kv_requests": 9.0, "kv_protected": 8.0, "kv_lag_tokens": 20.0},
    Incarnation("aw1", 1): {"kv_requests": 5.0, "kv_protected": 5.0, "kv_lag_tokens": 4.0},
    Incarnation("aw1", 7): {"kv_requests": 100.0},
    Incarnation("cs0", 1): {
        "kv_used_bytes": GIB / 4,
        "kv_capacity_bytes": GIB,
        "kv_evicted": 3.0,
        "kv_requests": 50.0,
    },
    Incarnation("cs1", 1): {"kv_used_bytes": GIB / 4, "kv_capacity_bytes": GIB},
}


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(Rules(replicas=1), stores=2).running()


def why(scenario: Scenario, later: float = 0.0, stats=STATS) -> str:
    return protection_of(scenario.state, stats, scenario.now + later).unprotected


def test_numbers_are_sums_over_the_current_incarnations(scenario):
    found = protection_of(scenario.state, STATS, scenario.now)
    assert (found.stores, found.wanted) == (2, 2)
    assert (found.requests, found.protected, found.lag_tokens) == (14, 13, 24)
    assert (found.used_bytes, found.capacity_bytes, found.evicted) == (GIB / 2, 2 * GIB, 3)
    assert found.lines == (
        "checkpoints: 2 of 2 stores serve; 13 of 14 requests protected, 24 tokens behind; "
        "512.0 MiB of 2.0 GiB used; 3 evicted",
        "unprotected: 1 request: on the way to the stores",
    )


def test_nothing_is_said_of_what_is_protected(scenario):
    stats = {Incarnation("aw0", 1): {"kv_requests": 9.0, "kv_protected": 9.0}}
    assert why(scenario, stats=stats) == ""
    assert len(protection_of(scenario.state, stats).lines) == 1


def test_the_loss_of_a_store_is_the_reason_until_its_successor_has_caught_up(scenario):
    scenario.happen(ev.WorkerSilent, "cs1", 1, 2.0)
    assert why(scenario) == "1 request: being copied to other stores than cs1"
    assert protection_of(scenario.state, STATS).stores == 1
    scenario.happen(ev.WorkerExited, "cs1", 1, "killed by SIGKILL")
    assert why(scenario) == "1 request: being copied to other stores than cs1"
    scenario.happen(ev.WorkerStarted, "cs1", 2, 101)
    scenario.happen(ev.WorkerReady, "cs1", 2, {})
    assert why(scenario) == "1 request: being copied anew after the loss of cs1"
    assert why(scenario, later=100) == "1 request: on the way to the stores"


def test_without_any_store_nothing_is_protected(scenario):
    for worker in ("cs0", "cs1"):
        scenario.happen(ev.WorkerExited, worker, 1, "killed by SIGKILL")
    assert why(scenario) == (
        "everything: no checkpoint store serves; what a lost AW ran is computed anew"
    )
    assert protection_of(scenario.state, STATS).evicted == 0  # the dead report nothing


def test_a_run_without_stores_says_nothing_and_status_has_it_all(scenario):
    bare = describe(Scenario().running().state, endpoint=None)["checkpoint"]
    assert (bare["wanted"], bare["lines"], bare["unprotected"]) == (0, [], "")
    status = describe(scenario.state, endpoint=None, now=scenario.now, stats=STATS)
    assert status["checkpoint"] == protection_of(scenario.state, STATS, scenario.now).plain()
    assert json.loads(json.dumps(status)) == status
    assert {w["id"]: w["stores"] for w in status["workers"] if w["role"] == "aw"} == {
        "aw0": ["cs0.1", "cs1.1"],
        "aw1": ["cs0.1", "cs1.1"],
    }
