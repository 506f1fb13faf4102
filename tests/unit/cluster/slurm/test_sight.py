"""A run without a head, as it is seen; heads that answer are in tests/slurm."""

from __future__ import annotations

import asyncio
import json

import pytest

from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, record
from tarragon_hpc.cluster.slurm.queue import JobView
from tarragon_hpc.cluster.slurm.sight import (
    is_slurm,
    job_log,
    queue_watch,
    slurm_status,
    without_head,
)
from tarragon_hpc.cluster.slurm.standing import standing
from tarragon_hpc.cluster.slurm.watch import QueueWatch
from tarragon_hpc.config import load_config
from tests.unit.cluster.slurm.looks import seen


def make(tmp_path, backend="slurm"):
    settings = {"model": {"path": "m"}, "cluster": {"backend": backend}}
    return create_run(load_config(settings), tmp_path / "r1")


def look(run_dir, text):
    async def squeue():
        return text

    return asyncio.run(slurm_status(run_dir, QueueWatch(10, squeue)))


def test_which_runs_are_on_slurm(tmp_path):
    run_dir = make(tmp_path, "local")
    assert not is_slurm(run_dir)
    record(run_dir, Job("7", HEAD, 1.0))
    assert is_slurm(run_dir)
    assert is_slurm(make(tmp_path / "other"))
    assert queue_watch(run_dir).poll_s == 10


def test_a_run_that_waits_is_no_error(tmp_path):
    run_dir = make(tmp_path)
    assert look(run_dir, "")["state"] == "prepared"
    record(run_dir, Job("7", HEAD, 1.0))
    found = look(run_dir, "7|PENDING|1:00|2026-11-27T10:00:00||Priority\n")
    assert (found["state"], found["workers"], found["endpoint"]) == ("pending", [], None)
    (job,) = found["jobs"]
    assert job == {
        "job": "7", "kind": "head", "number": 1, "worker": "", "submitted": 1.0,
        "state": "PENDING", "over": False, "reason": "Priority",
        "expected_start": "2026-11-27T10:00:00", "left_s": None, "nodes": [],
    }  # fmt: skip
    assert found["job_log"] == str(job_log(run_dir))
    assert "Infinity" not in json.dumps(look(run_dir, "7|RUNNING|UNLIMITED||n0|None\n"))


def test_a_run_that_slurm_forgot(tmp_path):
    run_dir = make(tmp_path)
    record(run_dir, Job("7", HEAD, 1.0))
    found = look(run_dir, "")
    assert (found["state"], found["jobs"][0]["state"]) == ("failed", "forgotten")


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("7|RUNNING|59:00|2026-11-27T10:00:00|n[0-1]|None", "unreachable"),
        ("7|CANCELLED|1:00|2026-11-27T10:00:00|n[0-1]|None", "cancelled"),
        ("7|NODE_FAIL|1:00|2026-11-27T10:00:00|n[0-1]|NodeFail", "dead"),
    ],
)
def test_a_head_that_died_before_it_wrote_anything(tmp_path, line, state):
    run_dir = make(tmp_path)
    record(run_dir, Job("7", HEAD, 1.0))
    # Nobody listens on port 1 of the loopback.
    where = ("127.0.0.1", 1, "http://127.0.0.1:2/v1", "/tmp/x")
    write_head(run_dir, HeadRecord("r1", 1, "n0", *where))
    found = look(run_dir, line + "\n")
    assert found["state"] == state
    assert "tunnel" not in found


RUNS = JobView("7", "RUNNING", "", ("n0",))
WAITS = JobView("8", "PENDING", "Dependency")
OVER = JobView("7", "TIMEOUT", "TimeLimit", ("n0",))
JOBS = [Job("7", HEAD, 1.0), Job("8", HEAD, 2.0, 2)]


@pytest.mark.parametrize(
    ("state", "more", "views", "said"),
    [
        ("dead", {}, (RUNS, WAITS), "headless"),
        ("dead", {}, (OVER, WAITS), "pending"),
        ("serving", {}, (RUNS, WAITS), None),
        ("unreachable", {}, (RUNS, WAITS), None),
        ("unreachable", {}, (OVER,), "dead"),
        ("dead", {}, (OVER,), "dead"),
        # A run that came to its end stays so, whatever its jobs do.
        ("ended", {}, (RUNS, WAITS), None),
        ("ended", {}, (OVER,), None),
        ("failed", {}, (OVER, WAITS), None),
        ("ended", {"handover": True}, (RUNS, WAITS), "handed over"),
        ("ended", {"handover": True}, (OVER, WAITS), "pending"),
        ("ended", {"handover": True}, (OVER,), "ended"),
    ],
)
def test_heads_and_jobs_together(state, more, views, said):
    status = {"run": "r1", "state": state, "reason": "time is up", **more}
    found = standing(JOBS[: len(views)], seen(*views), headed=True)
    result = without_head(status, found)
    assert result.get("state") == said
    if said == "dead":
        assert result["reason"].endswith(
            "(it reached its time limit); `tarragon resume r1` goes on with it"
        )
    if said == "ended":
        assert result["reason"] == (
            "time is up; it was handed over, and no job is left: `tarragon resume r1` goes on with"
            " it"
        )
