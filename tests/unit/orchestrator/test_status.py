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
    assert status["state"] == "unavailable"
    assert "experts 0-1" in status["reason"]
    assert "in_state_s" not in ew0
