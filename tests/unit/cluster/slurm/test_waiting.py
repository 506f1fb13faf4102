from __future__ import annotations

import asyncio

import pytest

from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.cluster.slurm import waiting
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, record
from tarragon_hpc.cluster.slurm.waiting import Verdict, exit_status, explain, judge
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, UserError


@pytest.mark.parametrize(
    ("state", "serving", "ended"),
    [
        ("prepared", "failed", "failed"),
        ("pending", "wait", "wait"),
        ("starting", "wait", "wait"),
        ("unknown", "wait", "wait"),
        ("unreachable", "wait", "wait"),
        ("headless", "wait", "wait"),
        ("unavailable", "wait", "wait"),
        ("serving", "done", "wait"),
        ("degraded", "done", "wait"),
        ("draining", "wait", "wait"),
        ("stopping", "wait", "wait"),
        ("ended", "failed", "done"),
        ("failed", "failed", "failed"),
        ("dead", "failed", "failed"),
        ("cancelled", "failed", "failed"),
    ],
)
def test_what_a_state_means_to_those_who_wait(state, serving, ended):
    for goal, expected in (("serving", serving), ("ended", ended)):
        verdict = judge({"state": state, "reason": "why"}, goal)
        assert verdict == Verdict(expected == "done", expected == "failed", f"{state}: why")
    assert judge({"state": state, "reason": ""}, "serving").line == state


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("JobId=3 JobName=x JobState=FAILED ExitCode=2:0 RunTime=0", 2),
        ("JobId=3 JobState=COMPLETED DerivedExitCode=4:0 ExitCode=0:0", 0),
        ("JobId=3 JobState=CANCELLED ExitCode=0:15", None),
        ("slurm_load_jobs error: Invalid job id specified", None),
    ],
)
def test_exit_status_of_a_job(text, status):
    assert exit_status(text) == status


@pytest.fixture
def run_dir(tmp_path):
    settings = {"model": {"path": "m"}, "cluster": {"backend": "slurm"}}
    return create_run(load_config(settings), tmp_path / "r1")


def test_the_end_of_the_log_is_told(run_dir):
    assert explain(run_dir, "why") == f"why; {run_dir}/logs/head.log is empty"
    (run_dir / "logs" / "head.log").write_text("starting\nerror: model.path: no such\n")
    assert explain(run_dir, "why") == (
        f"why; the end of {run_dir}/logs/head.log:\n  | starting\n  | error: model.path: no such"
    )


def scripted(monkeypatch, *states, job="scontrol: ExitCode=0:9"):
    """Looks in this order; the last one stays."""
    rest = list(states)

    async def look(run_dir, watch, *, fresh=False):
        state = rest.pop(0) if len(rest) > 1 else rest[0]
        over = state == "ended" and not rest[1:]
        jobs = [{"job": "7", "kind": "head", "over": over}]
        return {"state": state, "reason": "why", "jobs": jobs, "endpoint": "http://n0:1/v1"}

    async def scontrol(command, **_):
        assert command[-1] == "7"
        return job

    monkeypatch.setattr(waiting, "slurm_status", look)
    monkeypatch.setattr(waiting, "show_job", scontrol)
    monkeypatch.setattr(waiting, "_LOOK_S", 0)


def test_news_are_told_once(run_dir, monkeypatch):
    scripted(monkeypatch, "pending", "pending", "starting", "pending", "serving")
    told = []
    found = asyncio.run(waiting.wait_for(run_dir, "serving", told.append))
    assert found["endpoint"] == "http://n0:1/v1"
    assert told == ["pending: why", "starting: why", "pending: why"]


def test_the_end_of_a_run_ends_the_wait(run_dir, monkeypatch):
    record(run_dir, Job("7", HEAD, 1.0))
    scripted(monkeypatch, "pending", "failed")
    with pytest.raises(ClusterError, match="^r1: failed: why; .*head.log is empty"):
        asyncio.run(waiting.wait_for(run_dir, "serving", lambda _: None))
    scripted(monkeypatch, "failed", job="ExitCode=2:0")
    with pytest.raises(UserError, match="^r1: failed: why"):
        asyncio.run(waiting.wait_for(run_dir, "ended", lambda _: None))


def test_the_end_of_a_batch_is_that_of_its_job_or_its_report(run_dir, monkeypatch):
    scripted(monkeypatch, "serving", "ended", "ended", "ended")
    seen = []

    def settled(status):
        seen.append(status["jobs"][0]["over"])
        return False

    found = asyncio.run(waiting.wait_for(run_dir, "ended", lambda _: None, settled))
    assert found["jobs"][0]["over"]
    assert seen == [False, True]
    scripted(monkeypatch, "ended", "ended", "ended")
    found = asyncio.run(waiting.wait_for(run_dir, "ended", lambda _: None, lambda _: True))
    assert not found["jobs"][0]["over"]


def test_a_second_look_decides(run_dir, monkeypatch):
    scripted(monkeypatch, "failed", "starting", "serving")
    assert asyncio.run(waiting.wait_for(run_dir, "serving", lambda _: None))["state"] == "serving"
