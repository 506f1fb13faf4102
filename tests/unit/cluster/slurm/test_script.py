"""Configuration → batch scripts, as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tarragon_hpc.cluster.slurm.script import as_pattern, head_script, probes, worker_job
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Incarnation

RUN = Path("/shared/runs/tiny-1")


def config(*overrides, **slurm):
    data = {"model": {"path": "m"}, "cluster": {"backend": "slurm", "slurm": slurm}}
    return load_config(data, overrides)


def head(*overrides, **slurm):
    return head_script(
        config(*overrides, **slurm), ["python", "head"], job_name="tiny-1", output="/log"
    )


def worker(who="aw0", number=1, exclude=(), env=None, **slurm):
    command = ["/opt/py", "-m", "tarragon_hpc.cluster.entry", "--worker", who]
    command += ["--incarnation", str(number), "--run-dir", str(RUN)]
    incarnation = Incarnation(who, number)
    return worker_job(config(**slurm), incarnation, RUN, command, env=env or {}, exclude=exclude)


def flags(text):
    """Of each component: {option: value}."""
    parts = [{}]
    for line in text.splitlines():
        if line == "#SBATCH hetjob":
            parts.append({})
        elif line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert name not in parts[-1]
            parts[-1][name] = value or True
    return parts


def test_a_plain_job_has_room_for_all_workers_and_a_spare():
    (asked,) = flags(head("attention.workers=2", "experts.workers=2"))
    assert asked["nodes"] == "5"
    assert (asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "4")
    assert asked["no-kill"] is asked["no-requeue"] is True
    assert asked["signal"] == "B:USR2@180"
    assert (asked["output"], asked["open-mode"]) == ("/log", "append")
    assert not {"mem", "gres", "partition", "account", "wckey", "exclusive"} & asked.keys()


def test_gpus_and_memory_are_of_a_node():
    nodes = {"gpus_per_node": 4, "gpu_type": "a100", "memory": "64G", "partition": "gpu"}
    (asked,) = flags(head(nodes=nodes))
    assert (asked["nodes"], asked["ntasks-per-node"]) == ("2", "4")
    assert (asked["gres"], asked["mem"], asked["partition"]) == ("gpu:a100:4", "64G", "gpu")


def test_a_site_that_wants_gpus_per_node():
    asked = flags(head(nodes={"gpus_per_node": 4, "gpu_type": "a100"}, gpu_flag="gpus-per-node"))[0]
    assert asked["gpus-per-node"] == "a100:4"
    assert "gres" not in asked


def test_components_of_a_hetjob():
    text = head(
        topology="hetjob",
        account="me",
        nodes={"gpus_per_node": 2, "nodes": 2, "partition": "gpu"},
        head_nodes={"nodes": 2, "partition": "cpu", "cpus_per_slot": 1},
        ew_nodes={"nodes": 3, "partition": "cpu"},
    )
    first, aws, ews = flags(text)
    assert [p["partition"] for p in (first, aws, ews)] == ["cpu", "gpu", "cpu"]
    assert [p["nodes"] for p in (first, aws, ews)] == ["2", "2", "3"]
    assert [p.get("gres") for p in (first, aws, ews)] == [None, "gpu:2", None]
    assert all(p["no-kill"] and p["account"] == "me" for p in (first, aws, ews))
    assert "output" in first
    assert not {"output", "signal", "job-name"} & (aws.keys() | ews.keys())


def test_head_nodes_that_are_not_described_get_no_gpus():
    (first,) = flags(head(topology="pool", nodes={"gpus_per_node": 4, "gpu_type": "a100"}))
    assert "gres" not in first
    assert first["nodes"] == "1"


def test_a_fragile_hetjob_is_refused_unless_allowed():
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.aw_nodes\.nodes: 1: Slurm ends the"):
        head(topology="hetjob", nodes={"slots_per_node": 4})
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.head_nodes\.nodes: 1: Slurm ends the"):
        head(topology="hetjob", head_nodes={"nodes": 1})
    assert len(flags(head(topology="hetjob", nodes={"slots_per_node": 4}, allow_fragile=True))) == 3


def test_directives_of_the_site_override_and_are_skipped():
    (asked,) = flags(
        head(
            directives={"exclusive": True, "mail-type": "END", "no-requeue": False, "nice": 5},
            directives_skip=["no-kill", "--open-mode", "wckey"],
        )
    )
    assert asked["exclusive"] is True
    assert (asked["mail-type"], asked["nice"]) == ("END", "5")
    assert not {"no-kill", "open-mode", "no-requeue", "wckey"} & asked.keys()


@pytest.mark.parametrize("name", ["array", "dependency", "signal", "wrap", "requeue"])
def test_directives_that_a_run_depends_on_are_refused(name):
    with pytest.raises(ConfigError, match=rf"cluster\.slurm\.directives\.{name}: "):
        head(directives={name: "1"})


def test_no_value_can_add_lines():
    with pytest.raises(ConfigError, match=r"--comment .*: must be one line"):
        head(directives={"comment": "a\n#SBATCH --array=1-9"})
    assert "#SBATCH --constraint='a b;c'" in head(nodes={"constraint": "a b;c"})


def test_modules_and_prologue_come_before_the_command():
    text = head(modules=["gcc/13", "cuda"], prologue="source venv/bin/activate\n\nulimit -l 9\n")
    assert text.endswith(
        "\n\nmodule load gcc/13 cuda\nsource venv/bin/activate\nulimit -l 9\nexec python head\n"
    )


def test_a_workers_own_job_is_one_slot():
    nodes = {"gpus_per_node": 4, "memory": "64G", "cpus_per_slot": 8, "partition": "gpu"}
    text = worker("ew1", 3, nodes=nodes, exclude=["n7", "n2", "n7"], time="2:00:00")
    (asked,) = flags(text)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "1", "8")
    assert (asked["gres"], asked["mem"], asked["partition"]) == ("gpu:1", "16G", "gpu")
    assert (asked["exclude"], asked["time"]) == ("n2,n7", "2:00:00")
    assert (asked["job-name"], asked["output"]) == (
        "tiny-1-ew1.3",
        "/shared/runs/tiny-1/logs/ew1.3.log",
    )
    assert asked["signal"] == "B:TERM@180"
    assert text.splitlines()[-1] == (
        "exec /opt/py -m tarragon_hpc.cluster.entry --worker ew1 --incarnation 3"
        " --run-dir /shared/runs/tiny-1"
    )


def test_a_workers_environment_comes_before_it():
    lines = worker(env={"OMP_NUM_THREADS": "3", "A": "b c"}).splitlines()
    assert lines[-3:-1] == ["export OMP_NUM_THREADS=3", "export A='b c'"]
    assert lines[-1].startswith("exec /opt/py ")


def test_a_site_that_never_wants_some_node_and_a_run_that_does_not_either():
    assert flags(worker(exclude=["n2"], directives={"exclude": "n7"}))[0]["exclude"] == "n2,n7"
    assert flags(worker(directives={"exclude": "n7"}))[0]["exclude"] == "n7"


def test_heads_of_a_hetjob_are_on_two_nodes():
    assert flags(head(topology="hetjob"))[0]["nodes"] == "2"
    assert flags(head(topology="hetjob", allow_fragile=True))[0]["nodes"] == "1"


def test_a_worker_of_a_pool_is_on_the_nodes_of_its_kind():
    slurm = {
        "topology": "pool",
        "aw_nodes": {"gpus_per_node": 2, "partition": "gpu"},
        "ew_nodes": {"partition": "cpu"},
    }
    assert flags(worker("aw0", **slurm))[0]["partition"] == "gpu"
    assert flags(worker("ew0", **slurm))[0]["partition"] == "cpu"
    assert "gres" not in flags(worker("cs0", **slurm))[0]


@pytest.mark.parametrize(
    ("memory", "slots", "part"),
    [
        ("64G", 4, "16G"),
        ("64G", 3, "21845M"),
        ("1000", 4, "250"),
        ("1T", 8, "128G"),
        ("0", 2, 0),
    ],
)
def test_a_slots_share_of_the_memory(memory, slots, part):
    asked = flags(worker(nodes={"memory": memory, "slots_per_node": slots}))[0]
    assert asked["mem"] == str(part)


def test_slurm_replaces_nothing_in_the_name_of_a_log():
    assert as_pattern(Path("/a/100%job/x.log")) == "/a/100%%job/x.log"


def test_a_time_without_quotes_is_not_taken_for_minutes():
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.time: 86400: must be in quotes"):
        config(time=86400)


def test_slurm_is_asked_about_the_components_together():
    nodes = {"nodes": 3, "partition": "a", "gpus_per_node": 4}
    asked = [
        flags(text)
        for text in probes(
            config(topology="hetjob", nodes=nodes, ew_nodes={"nodes": 5, "partition": "b"})
        )
    ]
    assert [part["nodes"] for part in asked[0]] == ["2", "3", "5"]
    assert [(p["partition"], p["nodes"], p["no-kill"]) for p in asked[1]] == [("a", "5", True)]
    assert len(asked) == 2
    assert len(probes(config())) == len(probes(config(topology="pool"))) == 1


def test_the_signal_before_the_end_comes_after_the_begin():
    with pytest.raises(
        ConfigError, match=r"cluster\.slurm\.signal_s: 180: too long for jobs of 3:00"
    ):
        config(time="3:00")
    assert config(time="4:00").cluster.slurm.signal_s == 180
