from __future__ import annotations

import pytest

from tarragon_hpc.cli import doctor_slurm
from tarragon_hpc.cli.doctor_slurm import command, examine_slurm, judge
from tarragon_hpc.cli.finding import Finding
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, UserError

FACTS = [
    {"node": f"n{i}", "host": f"n{i}", "free_bytes": 5 << 30, "gpus": gpus, "cpus": 8,
     "interfaces": {"lo": "127.0.0.1", "ib0": f"10.0.0.{i}"}, "memlock_bytes": locked}
    for i, gpus, locked in ((0, ["0", "1"], None), (1, [], 65536))
]  # fmt: skip
RESULT = {
    "round_trip_s": 52e-6, "there_s": {"median": 0.003, "max": 0.012},
    "back_s": {"median": 1.5, "max": 3.0}, "claims": 200, "claimed_by_both": 0,
    "claimed_by_none": 0, "replaced": 300, "reads": 9000, "torn": 0, "missing": 0,
}  # fmt: skip


def test_what_two_nodes_saw():
    found = judge(FACTS, RESULT)
    assert all(finding.present for finding in found.values())
    assert found["node n0"].detail == (
        "2 GPUs (0,1), 8 CPUs, ib0 10.0.0.0, memlock without limit, 5.0 GiB free in run.root"
    )
    assert found["node n1"].detail.startswith("no GPU, 8 CPUs, ib0 10.0.0.1, memlock 64 KiB")
    assert "52 µs" in found["between them"].detail
    assert found["n0 to n1"].detail == "a file is seen after 3.0 ms (median), 12.0 ms (longest)"
    assert "1500.0 ms (median)" in found["n1 to n0"].detail
    assert found["exclusive"].detail == "of 200 names that both create, each to one"
    assert "always whole" in found["replace"].detail


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"claimed_by_both": 3}, "exclusive", "3 went to both"),
        ({"claimed_by_none": 2}, "exclusive", "2 to nobody"),
        ({"torn": 4}, "replace", "4 torn, 0 missing"),
        ({"missing": 1}, "replace", "0 torn, 1 missing"),
    ],
)
def test_a_filesystem_that_does_not_do(change, name, words):
    found = judge(FACTS, RESULT | change)
    assert not found.pop(name).present
    assert words in judge(FACTS, RESULT | change)[name].detail
    assert all(finding.present for finding in found.values())


def slurm(**keys):
    return load_config({"model": {"path": "m"}, "cluster": {"slurm": keys}}).cluster.slurm


def test_the_job_asks_for_what_a_run_would(tmp_path):
    words = command(
        slurm(
            nodes={"partition": "gpu", "gpus_per_node": 4, "gpu_type": "a100", "memory": "64G"},
            account="me", directives={"exclusive": True, "mail-type": "END", "comment": "x"},
            directives_skip=["mem"],
        ),
        tmp_path,
    )  # fmt: skip
    assert words[0] == "srun"
    for word in ("--nodes=2", "--ntasks=2", "--partition=gpu", "--gres=gpu:a100:4", "--account=me",
                 "--exclusive", "--comment=x"):  # fmt: skip
        assert word in words
    assert not [w for w in words if w.startswith(("--mem", "--mail", "--qos", "--constraint"))]
    assert words[-3:-1] == ["-m", "tarragon_hpc.cluster.slurm.two_nodes"]
    other = command(slurm(gpu_flag="gpus-per-node", nodes={"gpus_per_node": 2}), tmp_path)
    assert "--gpus-per-node=2" in other
    assert not [w for w in command(slurm(), tmp_path) if "gpu" in w]


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor_slurm.cluster()
    missing = "sbatch, srun, squeue, scancel, sinfo, scontrol"
    assert found == {"slurm": Finding(False, f"not in PATH: {missing}")}
    assert set(examine_slurm([], None, [], str(tmp_path), job=False)) == {"slurm", "run.root"}
    with pytest.raises(ClusterError, match="slurm: not in PATH"):
        examine_slurm([], None, [], str(tmp_path), job=True)
    with pytest.raises(UserError, match="doctor: rdma: with --slurm or --nodes no other lines"):
        examine_slurm(["rdma"], None, [], None, job=False)
