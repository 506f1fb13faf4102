"""`bench datapath` measures something, says what, and cleans up."""

from __future__ import annotations

import json
import os
import threading

import pytest

from tarragon_hpc.bench import datapath

pytestmark = pytest.mark.native


def test_a_short_run(capsys):
    affinity, threads = os.sched_getaffinity(0), threading.active_count()
    result = datapath.run(rounds=1)
    assert json.loads(json.dumps(result))["summary"].keys() == {
        f"p50_{what}_{rows}" for what in ("ratio", "extra_us") for rows in (1, 32, 256)
    }
    for record in result["rows"]:
        for who in ("ours_us", "raw_us"):
            assert 0 < record[who]["p50"] <= record[who]["p99"]
    assert [r["request_bytes"] // 8192 for r in result["rows"]] == [1, 32, 256]
    assert "floor" in capsys.readouterr().out
    assert os.sched_getaffinity(0) == affinity
    assert threading.active_count() == threads
