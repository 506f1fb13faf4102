"""`bench datapath` measures something, says what, and cleans up."""

from __future__ import annotations

import json
import os
import threading

import pytest

from tarragon_hpc.bench import datapath, perftools
from tarragon_hpc.errors import UserError
from tarragon_hpc.transport.rdma_ports import find_ports

pytestmark = pytest.mark.native


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_short_run(capsys, monkeypatch, transport):
    monkeypatch.setattr(perftools, "installed", lambda tool: False)
    affinity, threads = os.sched_getaffinity(0), threading.active_count()
    result = datapath.run(transport=transport, rounds=1)
    assert result["transport"] == transport
    assert result["ucx"] == "ucx_perftest is not installed"
    assert json.loads(json.dumps(result))["summary"].keys() == {
        f"p50_{what}_{rows}" for what in ("ratio", "extra_us") for rows in (1, 32, 256)
    }
    for record in result["rows"]:
        for who in ("ours_us", "raw_us"):
            assert 0 < record[who]["p50"] <= record[who]["p99"]
    assert [r["request_bytes"] // 8192 for r in result["rows"]] == [1, 32, 256]
    table = capsys.readouterr().out
    assert f"expert_io over {transport}" in table
    assert "ucx_perftest is not installed" in " ".join(table.split())
    assert os.sched_getaffinity(0) == affinity
    assert threading.active_count() == threads


def test_what_ucx_says_stands_beside_ours(capsys, monkeypatch):
    asked = []

    def found(kind, nbytes, calls, cpus, port):
        asked.append((kind, nbytes, port))
        return 98765.4

    monkeypatch.setattr(perftools, "installed", lambda tool: tool == perftools.UCX)
    monkeypatch.setattr(perftools, "ucx_round_trip", found)
    result = datapath.run(rounds=1)
    assert [r["ucx_us"] for r in result["rows"]] == [{"p50": 98765.4}] * 3
    assert result["ucx"] is None
    sizes = [(r["request_bytes"] + r["reply_bytes"]) // 2 for r in result["rows"]]
    assert asked == [("shm", size, None) for size in sizes]
    assert capsys.readouterr().out.count("98765") == 3


def test_a_transport_that_is_none_or_is_not_here(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--transport pigeon: expected one of shm, tcp, rdma"):
        datapath.run(transport="pigeon")
    monkeypatch.setattr(datapath, "find_ports", lambda: find_ports(tmp_path))
    with pytest.raises(UserError, match="--transport rdma: no RDMA device in /sys"):
        datapath.run(transport="rdma")
