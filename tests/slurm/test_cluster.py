"""The test cluster itself: what the other tests here rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.testcluster import processes
from slurm.testcluster.cluster import Cluster, sweep, wait
from slurm.testcluster.template import Settings

SCRIPT = Path(__file__).parents[2] / "slurm" / "testcluster" / "cluster.py"
WORKERS = """
for i in 0 1; do
  srun -N1 -n1 --exact --gres=gpu:1 --mem=0 --no-kill --kill-on-bad-exit=0 --job-name=w$i -w n$i \
    sh -c 'echo gpu=$CUDA_VISIBLE_DEVICES; exec sleep 300' &
done
wait
echo all over
sleep 300
"""


@pytest.fixture
def healthy(cluster):
    yield cluster
    cluster.heal()


@pytest.fixture
def workers(healthy):
    """A job with a step on n0 and another on n1."""
    job = healthy.submit(WORKERS, "-N2", "--gres=gpu:2", "--no-kill", "--time=10")
    wait(lambda: len(healthy.steps(job)) == 2, 20, "both steps")
    wait(lambda: healthy.output(job).count("gpu=0") == 2, 20, "both tasks")
    return job


def test_a_job_runs(healthy):
    begin = time.monotonic()
    job = healthy.submit("srun -n1 --gres=gpu:1 hostname", "--gres=gpu:2", "--time=1")
    wait(lambda: healthy.state(job) == "COMPLETED", 10, "completed")
    assert time.monotonic() - begin < 5
    assert healthy.output(job).strip() == os.uname().nodename


def test_the_death_of_a_task_ends_its_step_alone(healthy, workers):
    step = healthy.step(workers, "w0")
    assert step.node == "n0"
    begin = time.monotonic()
    healthy.kill_tasks(step.id)
    wait(lambda: len(healthy.steps(workers)) == 1, 5, "the step's end", every_s=0.02)
    assert time.monotonic() - begin < 2
    assert healthy.steps(workers)[0].name == "w1"
    wait(lambda: "task 0: Killed" in healthy.output(workers), 5, "Slurm's words")
    assert healthy.state(workers) == "RUNNING"


def test_a_task_outlives_its_srun(healthy, workers):
    step = healthy.step(workers, "w1")
    tasks = healthy.tasks(step.id)
    healthy.kill_srun("w1")
    time.sleep(1)
    assert tasks
    assert healthy.tasks(step.id) == tasks
    healthy.cancel(step.id)
    wait(lambda: not healthy.tasks(step.id), 5, "the task's end after scancel")


def test_the_rest_of_a_killed_srun_ends_its_step(healthy, workers):
    step = healthy.step(workers, "w1")
    healthy.kill_srun("w1", shepherd=False)
    wait(lambda: not healthy.tasks(step.id), 5, "the task's end")


def test_a_nodes_death_is_noticed_and_survived(healthy, workers):
    doomed = healthy.tasks(healthy.step(workers, "w1").id)
    assert doomed
    healthy.fail_node("n1")
    assert not doomed & set(processes.parents())
    wait(lambda: healthy.nodes()["n1"].startswith("down"), 40, "n1 down")
    wait(lambda: "Node failure on n1" in healthy.output(workers), 5, "Slurm's words")
    assert healthy.state(workers) == "RUNNING"
    assert healthy.tasks(healthy.step(workers, "w0").id)


def test_what_runs_outlives_its_slurmd(healthy, workers):
    tasks = healthy.tasks(healthy.step(workers, "w1").id)
    healthy.kill_slurmd("n1")
    assert tasks
    assert tasks <= set(processes.parents())
    healthy.start_slurmd("n1")
    assert healthy.tasks(healthy.step(workers, "w1").id) == tasks


def test_drained_nodes_get_nothing_new(healthy):
    for node in ("n0", "n1", "n2"):
        healthy.drain(node)
    job = healthy.submit("sleep 300", "--time=1")
    wait(lambda: healthy.state(job) == "RUNNING", 10, "running")
    assert healthy.call("squeue", "-h", "-j", job, "-o", "%N").strip() == "n3"
    assert healthy.nodes()["n0"] == "drain"


def test_a_job_of_components_starts_soon(healthy):
    begin = time.monotonic()
    parts = ["-N1", "-pgpu", "--gres=gpu:1", "--time=1", ":", "-N2", "-pcpu", "--time=1"]
    script = healthy.root / "het.sh"
    script.write_text("#!/bin/sh\nsleep 300\n")
    job = healthy.call("sbatch", "--parsable", *parts, str(script)).strip()
    wait(lambda: healthy.state(job) == "RUNNING", 15, "running")
    assert time.monotonic() - begin < 8


def test_high_preempts_low(tmp_path):
    cluster = Cluster(tmp_path, Settings(grace=1))
    cluster.up(owned=True)
    try:
        script = "srun --gres=none -n1 -N1 sleep 300; sleep 300"
        low = cluster.submit(script, "-plow", "-N6", "--exclusive", "-t9")
        wait(lambda: cluster.steps(low), 10, "low's step")
        high = cluster.submit("sleep 300", "-phigh", "-N6", "--exclusive", "-t1")
        wait(lambda: cluster.state(high) == "RUNNING", 30, "high runs")
        assert cluster.state(low) == "PENDING"  # requeued
        assert "PREEMPTION" in cluster.output(low)
    finally:
        cluster.down()


def test_a_strict_site(clusters):
    strict = clusters("strict")
    with pytest.raises(RuntimeError, match=r"nomem: do not ask for memory"):
        strict.submit("true", "-pnomem", "--mem=1G", "--time=1")
    with pytest.raises(RuntimeError, match=r"time limit .* is needed"):
        strict.submit("true")
    strict.submit("true", "-pnomem", "--time=1")
    strict.submit("true", "-pgpu", "--mem=1G", "--time=1")


def test_nothing_is_left_of_one_that_is_taken_down(tmp_path):
    subprocess.run([sys.executable, SCRIPT, "up", tmp_path], check=True, capture_output=True)
    cluster = Cluster(tmp_path)
    job = cluster.submit("setsid sleep 301 & srun -n1 --exact --gres=none sleep 302", "--time=1")
    wait(lambda: cluster.steps(job), 10, "a step")
    assert len(cluster.processes()) > 10
    # Somebody's shell that merely names the cluster is none of its processes.
    shell = subprocess.Popen(["sleep", "60"], env=cluster.environment)
    try:
        subprocess.run([sys.executable, SCRIPT, "down", tmp_path], check=True)
        assert not cluster.processes()
        assert not _mentioning(str(tmp_path))
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.wait()


def test_what_an_interrupted_run_left_is_swept(tmp_path):
    code = f"""
import time
from pathlib import Path
from slurm.testcluster.cluster import Cluster
Cluster(Path({str(tmp_path)!r})).up(owned=True)
print("up", flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "up\n"
    sweep()
    assert len(Cluster(tmp_path).processes()) >= 8  # whose owner lives is left alone
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    sweep()
    assert not Cluster(tmp_path).processes()
    assert not _mentioning(str(tmp_path))


def _mentioning(text):
    return [p for p in processes.parents() if text in " ".join(processes.command(p))]
