from __future__ import annotations

import json

import pytest

from tarragon_hpc.cli import doctor
from tarragon_hpc.cli.finding import Finding, probe
from tarragon_hpc.errors import UserError

CPU_TORCH = {"version": "2.13.0", "cuda": None, "gpus": []}
CUDA_TORCH = {"version": "2.13.0", "cuda": "13.0", "gpus": []}


def test_a_probe_returns_what_its_script_prints_last():
    assert probe("import json; print('noise'); print(json.dumps({'a': 1}))") == {"a": 1}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise OSError('libcuda.so.1: cannot open')", "OSError: libcuda.so.1: cannot open"),
        ("import os; os.kill(os.getpid(), 4)", "import ends the process (SIGILL)"),
        ("input = __import__('threading').Event().wait()", "did not import within 1 s"),
    ],
)
def test_a_probe_that_fails_says_why(script, reason):
    assert probe(script, timeout_s=1) == reason


@pytest.mark.parametrize(
    ("torch", "present", "words"),
    [
        (CUDA_TORCH | {"gpus": ["H100 (79 GiB, sm_90)"]}, True, "H100 (79 GiB, sm_90)"),
        (CUDA_TORCH, False, "torch sees no CUDA device"),
        (CPU_TORCH, False, "torch is built for CPU only"),
        ("ModuleNotFoundError: torch", False, "torch cannot tell: ModuleNotFoundError"),
    ],
)
def test_gpu(torch, present, words):
    found = doctor._gpu(torch)
    assert found.present == present
    assert words in found.detail


@pytest.mark.parametrize(
    ("probe", "present", "words"),
    [
        ({"version": "0.32.0", "platform": "cpu"}, True, "0.32.0, platform cpu"),
        ({"version": "0.31.1", "platform": "cpu"}, False, "version 0.32 is needed"),
        ({"version": "0.32.0", "platform": ""}, False, "does not support this machine"),
        ("import ends the process (SIGILL)", False, "SIGILL"),
    ],
)
def test_vllm(probe, present, words):
    found = doctor._vllm(probe)
    assert found.present == present
    assert words in found.detail


def test_slurm_lists_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._slurm() == Finding(False, "not in PATH: sbatch, srun, squeue, scancel")


@pytest.mark.parametrize(
    ("status", "text", "present"),
    [(0, "Slurmctld(primary) at n1 is UP", True), (1, "Slurmctld(primary) at n1 is DOWN", False)],
)
def test_slurm_asks_the_controller(monkeypatch, tmp_path, status, text, present):
    for name in (*doctor._SLURM, "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor._slurm() == Finding(present, text)


def test_every_finding_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda script: "not [here]")
    findings = doctor.examine()
    assert list(findings) == [
        "tarragon", "native", "torch", "vllm", "gpu", "rdma", "verbs", "transport", "memlock",
        "network", "slurm", "shm", "run.root", "cpu",
    ]  # fmt: skip
    printed = json.loads(doctor.as_json(findings))
    assert printed["torch"] == {"present": False, "detail": "not [here]"}
    doctor.show(findings)
    assert "not [here]" in capsys.readouterr().out


def test_only_what_is_wanted_is_looked_for(monkeypatch):
    monkeypatch.setattr(doctor, "probe", None)
    assert list(doctor.examine(["cpu", "rdma"])) == ["rdma", "cpu"]
    with pytest.raises(UserError, match=r"doctor: gpus: not looked for; there are tarragon, .*gpu"):
        doctor.examine(["gpus"])


@pytest.mark.vllm
def test_the_real_probes_find_the_engine():
    found = doctor.examine()
    assert found["torch"].present
    assert found["vllm"].present, found["vllm"].detail
    assert found["vllm"].detail.startswith("0.32.")
