"""What is submitted, and what Slurm makes of it; no service is started here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.testcluster.cluster import wait
from tarragon_hpc.cli.render import script
from tarragon_hpc.cluster.slurm.begin import begin
from tarragon_hpc.cluster.slurm.checks import prepared
from tarragon_hpc.cluster.slurm.jobs import jobs_of
from tarragon_hpc.cluster.slurm.sbatch import sbatch, submit_head, would_run
from tarragon_hpc.cluster.slurm.submit import HeadExecutor
from tarragon_hpc.cluster.work import Work, read_work
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, ConfigError
from tests.slurm.submitted import report

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TOPOLOGIES = ("single", "hetjob", "pool")
# Six nodes, of which the partition `low` has all.
HERE = {"cluster": {"slurm": {"nodes": {"partition": "low", "slots_per_node": 2}, "spares": 0}}}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def slurm(cluster, monkeypatch):
    """The cluster, as that of this process."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.chdir(ROOT)  # from where jobs import `tests`
    yield cluster
    for job in cluster.jobs():
        cluster.cancel(job)
    wait(lambda: not cluster.jobs(), 20, "no jobs")


@pytest.fixture
def config(tiny_models, tmp_path):
    """Factory: changes of cluster.slurm → a configuration with one AW and one EW."""

    def make(*overrides, **slurm):
        nodes = {"cpus_per_slot": 1, **slurm.pop("nodes", {})}
        data = {
            "model": {"path": str(tiny_models("mixtral"))},
            "attention": {"workers": 1},
            "experts": {"workers": 1},
            "run": {"root": str(tmp_path / "runs")},
            "cluster": {"backend": "slurm", "slurm": {"nodes": nodes, "time": "5:00", **slurm}},
        }
        return prepared(load_config(data, overrides))

    return make


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_slurm_takes_every_configuration(slurm, path, topology, tmp_path, monkeypatch):
    site = tmp_path / "here.yaml"
    site.write_text(json.dumps(HERE))
    overrides = ["cluster.backend=slurm", f"cluster.slurm.topology={topology}"]
    if path.stem == "reference":  # says everything itself, so that a site counts for nothing
        overrides += ["cluster.slurm.nodes.partition=low", "cluster.slurm.nodes.slots_per_node=2"]
        overrides += ["cluster.slurm.spares=0"]
    if topology == "hetjob":
        overrides += ["cluster.slurm.nodes.nodes=2"]
    config = load_config(path, overrides, site=str(site))
    assert "to start at" in would_run(script(config, Work()), config)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_head_is_submitted(slurm, config, topology):
    """The batch process is Python itself, without a shell around it, and is told of the time."""
    run_dir, job = begin(
        config(topology=topology, allow_fragile=True, spares=0),
        Work("generate", "/in", "/out"),
        report,
    )
    wait(lambda: (run_dir / "begun.json").exists(), 30, "the head", every_s=0.2)
    begun = json.loads((run_dir / "begun.json").read_text())
    assert begun["SLURM_JOB_ID"] == job.job
    assert begun["SLURM_HET_SIZE"] == ("3" if topology == "hetjob" else None)
    assert begun["parent"].startswith("slurmstepd")
    assert [j.job for j in jobs_of(run_dir)] == [job.job]
    assert read_work(run_dir) == Work("generate", "/in", "/out")
    told = (run_dir / "jobs" / f"{job.job}.sh").read_text()
    assert told == (run_dir / "submitit" / f"{job.job}_submission.sh").read_text()
    subprocess.run(
        ["scancel", "--batch", "--signal=USR2", job.job], env=slurm.environment, check=True
    )
    wait(lambda: (run_dir / "heard").exists(), 20, "the signal")
    assert (run_dir / "heard").read_text() == "SIGUSR2"
    wait(lambda: slurm.state(job.job) == "FAILED", 20, "the job's end")
    assert "ExitCode=5:0" in slurm.call("scontrol", "show", "job", "-o", job.job)
    assert (run_dir / "logs" / "head.log").exists()


def test_submitits_view_of_a_job_needs_no_accounting(slurm, config, tmp_path):
    run_dir = tmp_path / "a-run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.yaml").touch()  # by which a node sees that it sees the directory
    executor = HeadExecutor(config(), run_dir)
    job = executor.submit(report, str(run_dir))
    wait(lambda: (run_dir / "begun.json").exists(), 30, "the head", every_s=0.2)
    assert job.watcher.get_state(job.job_id, mode="force") == "RUNNING"
    job.cancel()
    wait(lambda: job.done(force_check=True), 20, "submitit's notice")
    with pytest.raises(ValueError, match="arrays cannot be submitted"):
        executor.map_array(report, [str(run_dir)] * 2)


def test_nothing_is_left_of_a_refused_job(slurm, config, tmp_path):
    for slurm_config, key in (
        ({"nodes": {"partition": "nope"}}, "cluster.slurm.nodes.partition"),
        ({"nodes": {"nodes": 50}}, "cluster.slurm.nodes"),
        ({"topology": "hetjob", "nodes": {"nodes": 3, "partition": "gpu"}}, "cluster.slurm.nodes"),
        ({"reservation": "nope"}, "cluster.slurm.reservation"),
        ({"directives": {"array": "1-9"}}, "cluster.slurm.directives.array"),
    ):
        with pytest.raises(ConfigError) as caught:
            begin(config(**slurm_config), Work(), report)
        assert caught.value.key == key
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(ConfigError, match="nope"):
        begin(config(nodes={"partition": "nope"}), Work(), report, mine)
    assert not list(mine.iterdir())
    assert not list((tmp_path / "runs").glob("*"))
    assert not slurm.jobs()


def test_the_controller_is_away(config, tmp_path, monkeypatch):
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=9\nMessageTimeout=2\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    with pytest.raises(ClusterError, match=r"sbatch: Unable to contact slurm controller"):
        begin(config(), Work(), report)
    assert not list((tmp_path / "runs").glob("*"))


def test_a_successor_waits_for_the_end(slurm, config):
    made = config()
    run_dir, first = begin(made, Work(), report)
    wait(lambda: (run_dir / "begun.json").exists(), 30, "the head", every_s=0.2)
    job = submit_head(made, run_dir, number=2, after=first.job)
    assert [j.number for j in jobs_of(run_dir)] == [1, 2]
    shown = slurm.call("scontrol", "show", "job", "-o", job.job)
    assert f"Dependency=afterany:{first.job}" in shown
    assert slurm.state(job.job) == "PENDING"
    slurm.cancel(job.job, first.job)


@pytest.mark.parametrize(
    ("site", "shown"),
    [
        ({"nodes": {"gpus_per_node": 2}}, "TresPerNode=gres:gpu:2"),
        ({"nodes": {"gpus_per_node": 2}, "gpu_flag": "gpus-per-node"}, "TresPerNode=gres:gpu:2"),
        ({"nodes": {"memory": "2G"}}, "MinMemoryNode=2G"),
        (
            {
                "nodes": {"memory": "2G", "partition": "nomem"},
                "directives_skip": ["mem", "cpus-per-task", "open-mode"],
                "directives": {"comment": "as the site wants it"},
            },
            "Comment=as the site wants it",
        ),
    ],
)
def test_sites(clusters, config, monkeypatch, tmp_path, site, shown):
    """On a cluster without accounting, whose partition `nomem` refuses --mem."""
    cluster = clusters("strict")
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    made = config(**site)
    log = tmp_path / "log"
    text = script(made, Work(), python="true").replace("tarragon-%j.log", str(log))
    job = sbatch(text, made)
    assert shown in cluster.call("scontrol", "show", "job", "-o", job)
    wait(lambda: cluster.state(job) == "COMPLETED", 20, "completed")


def test_a_partition_that_refuses_memory_says_so(clusters, config, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(clusters("strict").conf))
    with pytest.raises(ConfigError) as caught:
        begin(config(nodes={"memory": "2G", "partition": "nomem"}), Work(), report)
    assert caught.value.key == "cluster.slurm.nodes.memory"
    assert "do not ask for memory (--mem)" in str(caught.value)


def test_a_rendered_script_makes_its_own_run(slurm, config, tmp_path, monkeypatch):
    """Piped to sbatch, from elsewhere. The model is gone by then: the head says so and ends."""
    made = config()
    text = script(made, Work()).replace(made.model.path, f"{tmp_path}/gone")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    job = sbatch(text, made)
    wait(lambda: slurm.state(job) == "FAILED", 40, "the job's end", every_s=0.2)
    assert "ExitCode=2:0" in slurm.call("scontrol", "show", "job", "-o", job)
    (line,) = (tmp_path / f"tarragon-{job}.log").read_text().splitlines()
    assert line.startswith(f"error: {tmp_path}/gone: ")


def test_a_head_by_hand(slurm, config, tmp_path):
    """slurm/head.sbatch, with a configuration that does not exist."""
    command = ["sbatch", "--parsable", "--time=10", f"--output={tmp_path}/log"]
    command += [str(ROOT / "slurm/head.sbatch"), "nowhere.yaml", "--set", "gateway.port=1"]
    env = {**slurm.environment, "PYTHON": sys.executable}
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=True)
    out = done.stdout.strip()
    wait(lambda: slurm.state(out) == "FAILED", 40, "the job's end", every_s=0.2)
    assert "ExitCode=2:0" in slurm.call("scontrol", "show", "job", "-o", out)
    told = (tmp_path / "log").read_text()
    assert told == "error: nowhere.yaml: No such file or directory\n"


def test_the_recipe_for_batches(slurm, tiny_models, tmp_path):
    """launch/generate.py as a user calls it: a job for each file."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text('{"prompt": "x", "max_tokens": 1}\n')
    site = tmp_path / "here.yaml"
    run = {"run": {"root": str(tmp_path / "runs")}}
    site.write_text(json.dumps({**HERE, **run}))
    command = [sys.executable, "launch/generate.py", str(tiny_models("mixtral")), *map(str, files)]
    command += ["--out", str(tmp_path / "out"), "--site", str(site)]
    done = subprocess.run(command, text=True, capture_output=True, env=slurm.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 requests, job ") == 2
    runs = sorted((tmp_path / "runs").iterdir())
    assert [r.name[0] for r in runs] == ["a", "b"]
    assert read_work(runs[0]) == Work("generate", str(files[0]), str(tmp_path / "out/a.jsonl"))
    assert {j.job for r in runs for j in jobs_of(r)} <= set(slurm.jobs())
