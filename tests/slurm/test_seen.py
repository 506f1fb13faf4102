"""How runs whose head is not there are seen through a real Slurm: status, endpoint, waits, stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.testcluster.cluster import wait
from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.cluster.slurm.jobs import HEAD, WORKER, Job, record
from tarragon_hpc.config import load_config

ROOT = Path(__file__).parents[2]


class Seen:
    """A run directory, the jobs submitted for it, and the command line's view of it."""

    def __init__(self, cluster, root):
        settings = {"model": {"path": "m"}, "cluster": {"backend": "slurm"}}
        self.cluster = cluster
        self.root = root
        self.run_dir = create_run(load_config(settings), root / "r1")

    def submit(self, script, *flags, kind=HEAD, number=1):
        output = f"--output={self.run_dir}/logs/head.log"
        job = self.cluster.submit(script, output, "--open-mode=append", *flags)
        record(self.run_dir, Job(job, kind, time.time(), number))
        return job

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "tarragon_hpc.cli", *arguments],
            env=self.cluster.environment | {"PYTHONPATH": str(ROOT)}, cwd=self.root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def tarragon(self, command, *arguments):
        process = self.start(command, str(self.run_dir), *arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def status(self):
        code, out, err = self.tarragon("status", "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def seen(cluster, tmp_path):
    yield Seen(cluster, tmp_path)
    cluster.heal()


def blocked(seen):
    """A job that has to wait for nodes that another one has."""
    seen.cluster.submit("sleep 300", "-N4", "--exclusive", "--time=5")
    return seen.submit("sleep 300", "-N2", "--time=5")


def cancelled_while_it_waited(job, told):
    """What is said of it: Slurm calls the reason Priority until its scheduler has looked closer."""
    why = "Priority" if "(Priority)" in told else "Resources"
    return f"cancelled: job {job} ended: CANCELLED while it waited ({why})"


def test_a_pending_run_says_why_and_when(seen):
    job = blocked(seen)
    wait(lambda: seen.status()["jobs"][0]["reason"] == "Resources", 20, "the reason", every_s=1)
    wait(lambda: seen.status()["jobs"][0]["expected_start"], 20, "expected start", every_s=1)
    found = seen.status()
    assert found["state"] == "pending"
    start = found["jobs"][0]["expected_start"]
    words = (
        f"job {job} waits: Resources (the nodes it asks for are in use), expected to start {start}"
    )
    assert found["reason"] == words
    code, out, err = seen.tarragon("endpoint")
    assert (code, out) == (2, "")
    assert err == f"error: RUN: r1 has no endpoint: pending: {words}\n"
    code, out, _ = seen.tarragon("status")
    assert code == 0
    assert "r1  pending  epoch 0  no endpoint" in out


def test_a_run_cancelled_while_pending_ends_the_wait(seen):
    job = blocked(seen)
    waiting = seen.start("endpoint", str(seen.run_dir), "--wait")
    assert waiting.stderr.readline().startswith(f"pending: job {job} waits")
    seen.cluster.cancel(job)
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (3, "")
    told = err.splitlines()[-1]
    assert told == (
        f"error: r1: {cancelled_while_it_waited(job, told)} before it had a head;"
        f" {seen.run_dir}/logs/head.log is empty"
    )
    assert seen.status()["state"] == "cancelled"


@pytest.mark.parametrize(("code", "status"), [(2, 2), (3, 3), (1, 3)])
def test_a_job_that_dies_at_once_ends_the_wait_with_its_words(seen, code, status):
    job = seen.submit(f"echo starting; echo 'error: model.path: no such'; exit {code}", "--time=1")
    waiting = seen.start("endpoint", str(seen.run_dir), "--wait")
    out, err = waiting.communicate(timeout=40)
    assert (waiting.returncode, out) == (status, "")
    *_, first, second, third = err.splitlines()
    assert first.startswith(f"error: r1: failed: job {job} ended: FAILED, NonZeroExitCode")
    assert first.endswith(f"the end of {seen.run_dir}/logs/head.log:")
    assert (second, third) == ("  | starting", "  | error: model.path: no such")
    code, out, err = seen.tarragon("status")
    assert code == 0
    assert "error: model.path: no such" in out


def test_ctrl_c_leaves_the_run_alone(seen):
    job = blocked(seen)
    waiting = seen.start("endpoint", str(seen.run_dir), "--wait")
    assert waiting.stderr.readline().startswith("pending")
    waiting.send_signal(2)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, "")
    assert err == (
        "not waiting any longer; the run goes on: `tarragon status r1` shows it,"
        " `tarragon stop r1` ends it\n"
    )
    assert seen.cluster.state(job) == "PENDING"


def test_watching_without_a_terminal_ends_with_the_run(seen):
    job = blocked(seen)
    watching = seen.start("status", str(seen.run_dir), "--watch")
    assert f"pending: job {job} waits" in watching.stdout.readline()
    assert seen.tarragon("stop") == (0, f"r1: cancelled job {job}\n", "")
    out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (0, "")
    told = out.splitlines()[-1]
    assert told.endswith(f"{cancelled_while_it_waited(job, told)} before it had a head")


def test_logs_follow_a_run_that_waits_and_end_with_it(seen):
    holder = seen.cluster.submit("sleep 300", "-N4", "--exclusive", "--time=5")
    seen.submit("echo first; sleep 2; echo second", "-N2", "--time=5")
    following = seen.start("logs", str(seen.run_dir), "job", "-f")
    time.sleep(2)
    assert following.poll() is None
    seen.cluster.cancel(holder)
    out, err = following.communicate(timeout=40)
    assert (following.returncode, err) == (0, "")
    assert out == "head | first\nhead | second\n"


def test_stop_leaves_no_job_and_the_directory(seen):
    runs = seen.submit("sleep 300", "--time=5")
    worker = seen.submit("sleep 300", "--time=5", kind=WORKER)
    after = seen.submit("sleep 300", f"--dependency=afterany:{runs}", "--time=5", number=2)
    wait(lambda: seen.cluster.state(runs) == "RUNNING", 20, "running")
    found = seen.status()
    assert found["state"] == "starting"
    assert 0 < found["jobs"][0]["left_s"] <= 300
    code, out, err = seen.tarragon("stop", "--kill")
    assert (code, err) == (0, "")
    assert out == f"r1: cancelled jobs {runs}, {worker}, {after}\n"
    wait(lambda: not seen.cluster.jobs(), 20, "no job")
    assert (seen.run_dir / "config.yaml").exists()
    assert seen.tarragon("stop") == (0, "r1: had ended before\n", "")


def test_slurm_that_does_not_answer_is_no_end(seen):
    job = seen.submit("sleep 300", "--time=5")
    broken = seen.root / "slurm.conf"
    text = Path(seen.cluster.environment["SLURM_CONF"]).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("SlurmctldPort")]
    broken.write_text("\n".join([*lines, "SlurmctldPort=1", "MessageTimeout=2"]))
    environment = seen.cluster.environment | {"SLURM_CONF": str(broken), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tarragon_hpc.cli", "status", str(seen.run_dir), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["state"] == "unknown"
    assert found["reason"].startswith(f"job {job}: squeue: ")
    assert os.linesep not in found["reason"]


def test_doctor_tries_two_nodes(seen):
    doctor = seen.start("doctor", "--slurm", "--nodes", "2", "--root", str(seen.root), "--json",
                        "--set", "cluster.slurm.nodes.gpus_per_node=2")  # fmt: skip
    out, err = doctor.communicate(timeout=90)
    assert doctor.returncode == 0, err
    found = json.loads(out)
    assert found["slurm"]["detail"].startswith("22.05")
    assert found["partition gpu"]["detail"].startswith("default; 4 nodes (4 idle)")
    nodes = [name for name in found if name.startswith("node ")]
    assert len(nodes) == 2
    assert all(found[name]["detail"].startswith("2 GPUs (0,1)") for name in nodes)
    first, second = (name.removeprefix("node ") for name in nodes)
    for way in (f"{first} to {second}", f"{second} to {first}"):
        assert "a file is seen after" in found[way]["detail"]
    assert all(finding["present"] for finding in found.values())
    assert not list(seen.root.glob(".tarragon-doctor*"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster.slurm.nodes.partition=nope", "cluster.slurm.nodes.partition: 'nope': Slurm says"),
        ("cluster.slurm.nodes.gpus_per_node=9", "Slurm says: "),
    ],
)
def test_doctor_tells_what_slurm_refuses(seen, override, words):
    doctor = seen.start(
        "doctor", "slurm", "--nodes", "2", "--root", str(seen.root), "--set", override
    )
    out, err = doctor.communicate(timeout=60)
    assert (doctor.returncode, out) == (2, "")
    assert words in err.splitlines()[-1]
