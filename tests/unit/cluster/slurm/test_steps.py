"""The command lines of steps."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.allocation import Allocation
from tarragon_hpc.cluster.slurm.steps import prepared, side_step, step_environment, worker_step
from tarragon_hpc.config import load_config

PLAIN = Allocation("7", (("n0", "n1"),))
HET = Allocation("7", (("n0",), ("n1",)), ("7", "8"))


def slurm(**keys):
    return load_config({"model": {"path": "x"}, "cluster": {"slurm": keys}}).cluster.slurm


def gpus(**keys):
    return slurm(nodes={"gpus_per_node": 4, "cpus_per_slot": 6} | keys.pop("nodes", {}), **keys)


def test_a_workers_step():
    config = gpus(step_wait_s=5)
    argv = worker_step(PLAIN, 0, "n1", "ew0.2", ["python", "-m", "x"], slurm=config,
                       nodes=config.nodes)  # fmt: skip
    assert argv == [
        "srun", "--jobid=7", "--exact", "--nodes=1", "--ntasks=1", "--nodelist=n1", "--gres=gpu:1",
        "--cpus-per-task=6", "--mem=0", "--immediate=5", "--no-kill", "--kill-on-bad-exit=0",
        "--mpi=none", "--input=none", "--job-name=ew0.2", "python", "-m", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (slurm(), "--gres=none"),
        (gpus(nodes={"gpu_type": "a100"}), "--gres=gpu:a100:1"),
        (gpus(gpu_flag="gpus-per-node"), "--gpus-per-node=1"),
        (gpus(gpu_flag="gpus-per-node", nodes={"gpu_type": "h100"}), "--gpus-per-node=h100:1"),
    ],
)
def test_what_a_slot_has_of_gpus(config, flag):
    argv = worker_step(PLAIN, 0, "n0", "aw0.1", ["p"], slurm=config, nodes=config.nodes)
    assert [a for a in argv if "g" in a.split("=")[0] and "gpu" in a or "gres" in a] == [flag]


def test_a_spare_reads_a_line():
    argv = worker_step(PLAIN, 0, "n0", "spare0", ["p"], slurm=slurm(), nodes=slurm().nodes,
                       reads=True)  # fmt: skip
    assert "--input=none" not in argv


def test_a_component_of_a_heterogeneous_job():
    argv = side_step(HET, 1, "n1", "cs0.1", ["p"], slurm=gpus())
    assert argv[1:3] == ["--jobid=7", "--het-group=1"]
    assert {"--overlap", "--gres=none", "--cpus-per-task=1"} < set(argv)


def test_the_sites_shell_lines_come_first():
    config = slurm(modules=["cuda/12", "gcc"], prologue="ulimit -l unlimited")
    assert prepared(["p", "a b"], config) == [
        "bash", "-c", 'module load cuda/12 gcc\nulimit -l unlimited\nexec "$@"', "bash", "p", "a b",
    ]  # fmt: skip
    assert prepared(["p"], slurm()) == ["p"]


def test_the_heads_gpus_are_not_a_workers():
    found = step_environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1"}, {"OMP": "2"})
    assert found == {"PATH": "/bin", "OMP": "2"}
    assert step_environment({}, {"CUDA_VISIBLE_DEVICES": ""}) == {"CUDA_VISIBLE_DEVICES": ""}
