"""The two processes of `doctor --nodes 2`, here both on this machine and without Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tarragon_hpc.cluster.slurm.two_nodes import facts, gpus


def start(directory, number):
    command = [sys.executable, "-m", "tarragon_hpc.cluster.slurm.two_nodes", str(directory)]
    env = os.environ | {"SLURM_PROCID": str(number), "SLURMD_NODENAME": f"n{number}"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_both_tell_what_they_saw(tmp_path):
    both = [start(tmp_path, number) for number in (1, 0)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 < result["round_trip_s"] < 1
    for way in ("there_s", "back_s"):
        assert 0 < result[way]["median"] <= result[way]["max"] < 10
    assert (result["claims"], result["claimed_by_both"], result["claimed_by_none"]) == (200, 0, 0)
    assert result["reads"] > 0
    assert (result["torn"], result["missing"]) == (0, 0)
    nodes = [json.loads((tmp_path / f"facts.{i}.json").read_text())["node"] for i in (0, 1)]
    assert nodes == ["n0", "n1"]


def test_a_directory_that_is_not_there(tmp_path):
    process = start(tmp_path / "nowhere", 1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        errors == f"n1: {tmp_path}/nowhere is not there: run.root is not on a shared filesystem\n"
    )


def test_facts_of_this_node(tmp_path):
    found = facts(tmp_path, {"SLURMD_NODENAME": "n3", "SLURM_STEP_GPUS": "0,2"})
    assert (found["node"], found["gpus"]) == ("n3", ["0", "2"])
    assert found["free_bytes"] > 0
    assert "lo" in found["interfaces"]
    assert gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ["1"]
