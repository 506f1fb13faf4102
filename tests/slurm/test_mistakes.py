"""What cannot work ends with one clear line and the right status, and leaves nothing running."""

from __future__ import annotations

import subprocess
import time

import pytest
import yaml

from slurm.testcluster.cluster import wait
from tests.slurm.service import COMMAND, config_for, tarragon

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def submit(cluster, tiny_models, tmp_path):
    """Factory: changes of cluster.slurm, further arguments → the finished `tarragon serve`."""

    def run(slurm, *arguments, **more):
        config = config_for(tiny_models("mixtral"), cluster={"slurm": slurm}, **more)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        if "--run-dir" not in arguments:
            arguments = ("--run-dir", str(tmp_path / "run"), *arguments)
        return tarragon(cluster, "serve", str(file), *arguments)

    yield run
    try:
        wait(lambda: not cluster.jobs(), 10, "no job is left")
    finally:
        cluster.heal()


def line(done):
    """The one line on stderr."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stdout
    return lines[0]


@pytest.mark.parametrize(
    ("slurm", "key", "slurms"),
    [
        ({"nodes": {"partition": "gpus"}}, "cluster.slurm.nodes.partition", "invalid partition"),
        ({"nodes": {"gpus_per_node": 3}}, "cluster.slurm.nodes", "node configuration"),
        ({"nodes": {"memory": "900G"}}, "cluster.slurm.nodes.memory", "memory"),
        ({"nodes": {"constraint": "a100"}}, "cluster.slurm.nodes.constraint", "feature"),
        ({"directives": {"nonsense": 1}}, "cluster.slurm.directives", "nonsense"),
    ],
)
def test_what_slurm_refuses(submit, tmp_path, slurm, key, slurms):
    done = submit(slurm)
    told = line(done)
    assert done.returncode == 2, told
    assert key in told
    assert slurms in told.lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("nodes", [{"nodes": 40}, {"cpus_per_slot": 60}])
def test_what_slurm_takes_and_would_never_start(submit, tmp_path, nodes):
    """Such a job waits for ever: it is taken back, and nobody has to find out."""
    done = submit({"nodes": nodes})
    told = line(done)
    assert done.returncode == 2, told
    assert "cluster.slurm.nodes: " in told
    assert "node configuration is not available" in told
    assert not (tmp_path / "run").exists()


def test_a_fragile_hetjob(submit):
    done = submit({"topology": "hetjob", "head_nodes": {"nodes": 1}})
    assert done.returncode == 2
    assert "--allow-fragile" in line(done)


def test_slurm_is_unreachable(cluster, submit, tmp_path, monkeypatch):
    conf = tmp_path / "slurm.conf"
    text = cluster.conf.read_text()
    port = next(x for x in text.splitlines() if x.startswith("SlurmctldPort="))
    conf.write_text(
        text.replace(port, "SlurmctldPort=1").replace("MessageTimeout=5", "MessageTimeout=2")
    )
    (tmp_path / "gres.conf").write_text((cluster.root / "gres.conf").read_text())
    monkeypatch.setattr(cluster, "conf", conf)
    done = submit({})
    monkeypatch.undo()
    told = line(done)
    assert done.returncode == 3, told
    assert "contact" in told.lower()
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_written(submit, tmp_path):
    file = tmp_path / "a-file"
    file.write_text("")
    done = submit({}, "--run-dir", str(file / "run"))
    assert done.returncode == 2
    assert str(file) in line(done)


def test_a_run_directory_that_the_nodes_do_not_share(cluster, submit, tmp_path):
    nodes = ("n0", "n1", "n2", "n3")
    for node in nodes:
        cluster.kill_slurmd(node)
        cluster.start_slurmd(node, without=tmp_path)
    try:
        done = submit({}, "--wait")
    finally:
        for node in nodes:
            cluster.kill_slurmd(node)
            cluster.start_slurmd(node)
    assert done.returncode == 3, done.stderr
    assert "filesystem that all nodes share" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_job_that_is_cancelled_while_it_waits(cluster, submit, tmp_path):
    blocker = cluster.submit("sleep 300", "-pgpu", "-N4", "--exclusive", "--time=5")
    wait(lambda: cluster.state(blocker) == "RUNNING", 20, "blocker")
    waiting = _start(cluster, tmp_path, submit)
    try:
        wait(lambda: len(cluster.jobs()) == 2, 30, "submitted")
        time.sleep(1.5)
        (job,) = set(cluster.jobs()) - {blocker}
        cluster.cancel(job)
        out, err = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
        cluster.cancel(blocker)
        wait(lambda: not cluster.jobs(), 20, "no jobs")
    assert waiting.returncode == 3, err
    last = err.strip().splitlines()[-1]
    assert "CANCELLED" in err or "cancelled" in err
    assert job in err, last
    assert "Traceback" not in err


def _start(cluster, tmp_path, submit):
    """`tarragon serve --wait` of the same configuration, in the background."""
    done = submit({"nodes": {"partition": "nowhere"}})  # writes the file
    assert done.returncode == 2
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("nowhere", "gpu"))
    command = [*COMMAND, "serve", str(file), "--run-dir", str(tmp_path / "run"), "--wait"]
    return subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
