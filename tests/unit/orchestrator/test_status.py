"""Status is plain data with plain words."""

from __future__ import annotations

import json

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.status import describe


def test_a_running_run(scenario):
    state = scenario.running().state
    status = describe(
        state,
        endpoint="http://127.0.0.1:8000/v1",
        now=scenario.now + 2,
        heard={Incarnation("ew0", 1): scenario.now + 1.5},
        stats={Incarnation("ew0", 1): {"rows": 12.0}},
    )
    assert json.loads(json.dumps(status)) == status
    assert {k: status[k] for k in ("run", "state", "endpoint", "epoch")} == {
        "run": "r",
        "state": "serving",
        "endpoint": "http://127.0.0.1:8000/v1",
        "epoch": 1,
    }
    ew0 = next(w for w in status["workers"] if w["id"] == "ew0")
    assert {k: ew0[k] for k in ("role", "state", "incarnation", "pid", "host", "experts")} == {
        "role": "ew",
        "state": "serving",
        "incarnation": 1,
        "pid": 100,
        "host": "host",
        "experts": [0, 1],
    }
    assert (ew0["holds"], ew0["loading"], ew0["restarts"]) == ([0, 1], [], 0)
    assert status["coverage"]["load_single"] == ["ew0", "ew1"]
    assert ew0["heard_s_ago"] == 0.5
    assert ew0["stats"] == {"rows": 12.0}
    assert ew0["detail"] == {"blocks": 7}
    assert [w["experts"] for w in status["workers"] if w["role"] == "aw"] == [[], []]


def test_deaths_and_silence_are_said_with_their_reason(scenario):
    scenario.running()
    scenario.happen(ev.WorkerSilent, "aw1", 1, 2.0)
    scenario.happen(ev.WorkerLost, "ew0", 1, "connection", "its connection was closed")
    state = scenario.happen(ev.WorkerExited, "ew0", 1, "killed by SIGKILL")
    status = describe(state, endpoint=None)
    words = {w["id"]: w["state"] for w in status["workers"]}
    assert words == {"aw0": "serving", "aw1": "unresponsive", "ew0": "dead", "ew1": "serving"}
    ew0 = next(w for w in status["workers"] if w["id"] == "ew0")
    assert (ew0["reason"], ew0["exit"]) == ("its connection was closed", "killed by SIGKILL")
    assert status["state"] == "degraded"
    assert "experts 0-1" in status["reason"]
    assert "in_state_s" not in ew0


def test_what_happens_to_a_replacement_is_said(scenario):
    scenario.running()
    scenario.happen(ev.WorkerExited, "ew0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerStarted, "ew0", 2, 101)
    ew0 = next(w for w in describe(scenario.state, endpoint=None)["workers"] if w["id"] == "ew0")
    assert (ew0["restarts"], ew0["before"]) == (1, "killed by SIGKILL")
    scenario.happen(ev.WorkerExited, "ew0", 2, "exit status 1")
    scenario.happen(ev.WorkerGivenUp, "ew0", 2, "given up after 1 restarts in 3 s: exit status 1")
    status = describe(scenario.state, endpoint=None)
    assert status["state"] == "degraded"
    assert "ew0 given up after 1 restarts in 3 s: exit status 1" in status["reason"]
    scenario.happen(ev.WorkerRetired, "ew1", 1, "scaled to ew=1")
    ew1 = next(w for w in describe(scenario.state, endpoint=None)["workers"] if w["id"] == "ew1")
    assert (ew1["state"], ew1["reason"]) == ("retiring", "scaled to ew=1")
