"""Time limits, preemption, dead heads: real jobs of a batch and of a service, workers without an
engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from slurm.testcluster.cluster import wait
from tarragon_hpc.cluster.rendezvous import create_run, read_head
from tarragon_hpc.cluster.slurm.jobs import jobs_of
from tarragon_hpc.cluster.slurm.sbatch import submit_head
from tarragon_hpc.cluster.work import Work, write_work
from tarragon_hpc.config import load_config
from tests.slurm.service import Run

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SCRIPTED = Path(__file__).with_name("scripted")
REPOSITORY = Path(__file__).parents[2]
TOKENS = 300


@pytest.fixture
def slurm(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    yield cluster
    if left := cluster.jobs():
        cluster.cancel(*left)
    cluster.heal()


@pytest.fixture
def submit(slurm, tiny_models, tmp_path):
    """Factory: (work, keys of cluster.slurm) → a run whose first job was submitted."""

    def make(work: Work, **keys) -> Run:
        slurm_keys = {
            "nodes": {"cpus_per_slot": 2, "slots_per_node": 2, "partition": "low", "nodes": 2},
            "time": "10",
            "signal_s": 60,
            "on_timelimit": "chain",
            "spares": 0,
            "warm_spares": False,
            "standby_head": False,
            "prologue": f"export PYTHONPATH={SCRIPTED}:{REPOSITORY}",
            **keys,
        }
        config = load_config(
            {
                "model": {"path": str(tiny_models("mixtral")), "served_name": "tiny"},
                "attention": {"workers": 2, "max_num_seqs": 2},
                "gateway": {"port": 0},
                "detection": {"heartbeat_ms": 50, "heartbeat_misses": 20},
                "cluster": {"backend": "slurm", "drain_timeout_s": 0.5, "slurm": slurm_keys},
            }
        )
        path = create_run(config, tmp_path / "run")
        write_work(path, work)
        submit_head(config, path, number=1)
        return Run(slurm, path)

    return make


@pytest.fixture
def batch(submit, tmp_path):
    """Factory: how many requests, keys of cluster.slurm → a batch whose job was submitted."""

    def make(requests: int = 60, **keys) -> Batch:
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        lines = [{"prompt": [5, 6, 7], "max_tokens": TOKENS} for _ in range(requests)]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Batch(submit(Work("generate", str(source), str(target)), **keys), target, requests)

    return make


class Batch:
    def __init__(self, run: Run, target: Path, requests: int) -> None:
        self.run, self.target, self.requests = run, target, requests

    def done(self) -> int:
        parts = (self.run.run_dir / "results").glob("*.jsonl")
        return sum(part.read_bytes().count(b"\n") for part in parts)

    def until(self, count: int) -> None:
        wait(lambda: self.done() >= count, 60, f"{count} results\n{self.run.why()}")

    def running(self) -> str:
        """The job that runs, once one does."""
        cluster = self.run.cluster
        wait(lambda: "RUNNING" in map(cluster.state, self.run.jobs), 60, "a job that runs")
        return next(job for job in self.run.jobs if cluster.state(job) == "RUNNING")

    def report(self) -> dict:
        """Once all jobs are over: each request has one result, and all the tokens."""
        wait(lambda: not self.run.cluster.jobs(), 120, f"the end of all jobs\n{self.run.why()}")
        lines = [json.loads(line) for line in self.target.read_text().splitlines()]
        assert sorted(int(x["custom_id"]) for x in lines) == list(range(1, self.requests + 1))
        counts = {x["response"]["body"]["usage"]["completion_tokens"] for x in lines}
        assert counts == {TOKENS}
        found = json.loads((self.run.run_dir / "report.json").read_text())
        assert found["complete"]
        return found


def test_a_batch_across_two_time_limits(batch, slurm):
    found = batch()
    for share in (5, 25):
        found.until(share)
        slurm.call("scancel", "--batch", "--signal=USR2", job := found.running())
        wait(lambda job=job: slurm.state(job) == "COMPLETED", 30, "the end of the job")
        assert found.done() < found.requests
    report = found.report()
    assert (report["heads"], report["answered"]) == (3, found.requests)
    first, second, third, last = found.run.jobs
    assert report["jobs"] == [first, second, third]
    assert [slurm.state(job) for job in (first, second, third)] == ["COMPLETED"] * 3
    assert slurm.state(last) == "CANCELLED"
    reasons = [line["reason"] for line in found.run.told("handover began")]
    assert reasons == ["the job's time limit is near"] * 2
    # What was running at a limit went on from the tokens that were known.
    assert sum(line["count"] for line in found.run.told("requests taken over")) > 0


def test_a_real_time_limit(batch, slurm):
    found = batch(time="2")
    job = found.running()
    found.until(1)
    head = int(read_head(found.run.run_dir).pid)
    os.kill(head, signal.SIGSTOP)  # the batch is not to end before the limit

    def elapsed() -> float:
        minutes, seconds = slurm.call("squeue", "-h", "-j", job, "-o", "%M").strip().split(":")
        return 60 * int(minutes) + int(seconds)

    # The signal comes 60 to 120 s before the limit.
    wait(lambda: elapsed() > 65, 100, "the signal")
    os.kill(head, signal.SIGCONT)
    report = found.report()
    assert [line["reason"] for line in found.run.told("handover began")] == [
        "the job's time limit is near"
    ]
    assert report["heads"] == 2


def test_a_preempted_batch_goes_on_in_the_next_job(batch, slurm):
    found = batch()
    found.until(5)
    first = found.running()
    urgent = slurm.submit("sleep 3", "-phigh", "-N6", "--exclusive", "--time=1")
    wait(lambda: found.run.told("handover began"), 30, f"the handover\n{found.run.why()}")
    (began,) = found.run.told("handover began")
    assert "4 of 4 workers were given notice (SIGTERM)" in began["reason"]
    assert f"job {first} is being taken away" in began["reason"]
    wait(lambda: slurm.state(urgent) in ("RUNNING", "COMPLETED"), 60, "the urgent job")
    report = found.report()
    assert report["heads"] == 2
    assert slurm.state(first) not in ("RUNNING", "PENDING")


def test_a_stopped_batch_cancels_its_successor(batch, slurm):
    found = batch()
    found.until(5)
    wait(lambda: len(found.run.jobs) == 2, 10, "the successor")
    assert slurm.state(found.run.jobs[1]) == "PENDING"
    head = read_head(found.run.run_dir).pid
    os.kill(head, signal.SIGINT)
    wait(lambda: not slurm.jobs(), 30, f"the end of all jobs\n{found.run.why()}")
    assert slurm.state(found.run.jobs[1]) == "CANCELLED"
    report = json.loads((found.run.run_dir / "report.json").read_text())
    assert report["missing"] > 0
    assert len(found.target.read_text().splitlines()) == found.requests - report["missing"]


def test_a_head_that_is_killed_in_the_middle(batch):
    found = batch()
    for share in (5, 20):
        found.until(share)
        head = read_head(found.run.run_dir)
        os.kill(head.pid, signal.SIGKILL)
        wait(
            lambda old=head: read_head(found.run.run_dir).incarnation > old.incarnation,
            30,
            f"the next head\n{found.run.why()}",
        )
    assert found.report()["heads"] >= 3


def test_one_step_that_is_told_to_leave_is_moved(batch, slurm):
    found = batch(requests=150)
    found.until(5)
    step = slurm.step(found.running(), "aw0.1")
    with contextlib.suppress(RuntimeError):  # of the job's nodes without this step
        slurm.call("scancel", "--signal=TERM", step.id)
    wait(lambda: found.run.told("worker given notice"), 10, "the notice")
    assert found.report()["heads"] == 1
    notices = found.run.told("worker given notice")
    assert [(line["worker"], line["incarnation"]) for line in notices] == [("aw0", 1)]
    lost = [line for line in found.run.told("worker lost") if line["worker"] == "aw0"]
    assert not lost


def test_a_service_that_is_not_chained_is_gone_on_with_by_hand(submit, slurm):
    run = submit(Work(), on_timelimit="stop")
    wait(lambda: jobs_of(run.run_dir) and serves(run), 60, f"the service\n{run.why()}")
    body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 2000, "stream": True}
    with httpx.stream(
        "POST", f"{run.endpoint}/completions", json=body | {"resumable": True}, timeout=30
    ) as reply:
        name = reply.headers["x-request-id"]
        slurm.call("scancel", "--batch", "--signal=USR2", run.job)
        lines = [line for line in reply.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "handover"
    known = sum(line.startswith("id: ") for line in lines)
    wait(lambda: not slurm.jobs(), 30, "the end of the job")
    run.tell("resume")
    wait(lambda: serves(run), 60, f"the service\n{run.why()}")
    with httpx.stream(
        "GET", f"{run.endpoint}/requests/{name}/stream?after={known}", timeout=60
    ) as reply:
        assert reply.status_code == 200
        rest = [line for line in reply.iter_lines() if line]
    assert rest[0] == f"id: {known + 1}"
    assert rest[-1] == "data: [DONE]"
    ids = [int(line.removeprefix("id: ")) for line in rest if line.startswith("id: ")]
    assert ids == list(range(known + 1, known + 1 + len(ids)))


def serves(run: Run) -> bool:
    try:
        return httpx.get(f"{run.endpoint[:-2]}health", timeout=5).status_code == 200
    except Exception:  # noqa: BLE001 - not yet
        return False
