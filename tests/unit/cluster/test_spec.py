"""What each worker gets of the machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.cluster.devices import usable_cpus, usable_gpus
from tarragon_hpc.cluster.entry import main as entry_main
from tarragon_hpc.cluster.spec import cpu_share, plan_steps, plan_workers
from tarragon_hpc.config import Config, load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Incarnation, Role


def config(aws: int = 2, ews: int = 2, **sections: Any) -> Config:
    data: dict[str, Any] = {"attention": {"workers": aws}, "experts": {"workers": ews}}
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    return load_config({"model": {"path": "m"}, **data})


@given(st.integers(1, 64), st.integers(1, 64))
def test_cpus_are_shared_out_evenly_and_completely(cpus, workers):
    ids = [3 * i for i in range(cpus)]
    shares = [cpu_share(ids, n, workers) for n in range(workers)]
    assert all(shares)
    if workers <= cpus:
        assert [cpu for share in shares for cpu in share] == ids
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        users = [sum(cpu in share for share in shares) for cpu in ids]
        assert max(users) - min(users) <= 1


def test_aws_and_ews_use_the_same_cpus_in_turns():
    specs = plan_workers(config(2, 4), [0, 1, 2, 3], [])
    assert [(s.worker, s.role, s.cpus, s.env["OMP_NUM_THREADS"]) for s in specs] == [
        ("aw0", Role.AW, (0, 1), "2"),
        ("aw1", Role.AW, (2, 3), "2"),
        ("ew0", Role.EW, (0,), "1"),
        ("ew1", Role.EW, (1,), "1"),
        ("ew2", Role.EW, (2,), "1"),
        ("ew3", Role.EW, (3,), "1"),
    ]
    assert all("CUDA_VISIBLE_DEVICES" not in s.env for s in specs)


def test_without_pinning_nobody_is_bound_but_threads_are_still_shared_out():
    wanted = config(2, 1, cluster={"pin": "none"}, attention={"threads": 3})
    specs = plan_workers(wanted, [0, 1, 2, 3], [])
    assert [s.cpus for s in specs] == [None, None, None]
    assert [s.env["OMP_NUM_THREADS"] for s in specs] == ["3", "3", "4"]


def test_every_worker_gets_a_gpu_of_its_own_while_there_are_any():
    specs = plan_workers(config(2, 2), [0], ["0", "1", "2", "3"])
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in specs] == ["0", "1", "2", "3"]
    assert not any(s.shares_cpus for s in specs)  # they compute on GPUs
    assert "--shares-cpus" not in specs[0].command(Incarnation("aw0", 1), Path("/r"), 9, 7)
    specs = plan_workers(config(1, 3), [0], ["4", "5"])
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in specs] == ["4", "5", "4", "5"]


def test_stores_have_no_place_of_their_own():
    specs = plan_workers(config(1, 1, checkpoint={"stores": 2}), [0, 1], ["4", "5"])
    assert [s.worker for s in specs] == ["aw0", "ew0", "cs0", "cs1"]
    for store in specs[2:]:
        assert (store.role, store.cpus) == (Role.CS, None)
        assert store.env == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        assert "--cpus" not in store.command(Incarnation(store.worker, 1), Path("/r"), 9, 7)
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in specs[:2]] == ["4", "5"]


def test_a_worker_has_the_prefix_of_its_own_or_of_its_role():
    prefixes = {"ew0": ["ip", "netns", "exec", "n1"], "ew": ["nice"], "cs": ["nice", "-n", "5"]}
    wanted = config(1, 2, cluster={"prefix": prefixes}, checkpoint={"stores": 1})
    specs = {s.worker: s for s in plan_workers(wanted, [0], [])}
    assert {name: list(s.prefix) for name, s in specs.items()} == {
        "aw0": [],
        "ew0": prefixes["ew0"],
        "ew1": prefixes["ew"],
        "cs0": prefixes["cs"],
    }
    plain = replace(specs["ew0"], prefix=())
    arguments = Incarnation("ew0", 1), Path("/r"), 9, 7
    assert specs["ew0"].command(*arguments) == [*prefixes["ew0"], *plain.command(*arguments)]


def test_aws_that_share_a_gpu_must_fit_on_it():
    with pytest.raises(ConfigError) as error:
        plan_workers(config(2, 1), [0], ["7"])
    assert str(error.value) == (
        "attention.gpu_memory_fraction: 0.85: 2 AWs share GPU 7; at most 0.50 each"
    )
    plan_workers(config(2, 1, attention={"gpu_memory_fraction": 0.4}), [0], ["7"])
    plan_workers(config(1, 3), [0], ["7"])


def test_the_command_line_is_one_that_the_entry_understands(monkeypatch):
    (aw, *_) = plan_workers(config(1, 1), [2, 3], [])
    command = aw.command(Incarnation("aw0", 4), Path("/runs/r"), 99, 7)
    assert command[:3] == [sys.executable, "-m", "tarragon_hpc.cluster.entry"]
    seen = []
    monkeypatch.setattr("tarragon_hpc.cluster.entry.die_with", lambda parent: seen.append(parent))
    monkeypatch.setattr("tarragon_hpc.cluster.entry.hold", seen.append)
    monkeypatch.setattr("tarragon_hpc.cluster.entry.configure", seen.append)
    monkeypatch.setattr("tarragon_hpc.cluster.entry.os.umask", lambda mask: None)
    monkeypatch.setattr("tarragon_hpc.cluster.entry.faulthandler.enable", lambda: None)
    monkeypatch.setattr(
        "tarragon_hpc.cluster.entry.make_context",
        lambda *args, shares_cpus: (
            seen.append((*args, shares_cpus)) or (_ for _ in ()).throw(ConfigError("x", "enough"))
        ),
    )
    assert entry_main(command[3:]) == 2
    assert seen == [99, "aw0.4", 7, (Path("/runs/r"), ("aw0", 4), (2, 3), ANY, True)]


def test_the_machine_is_asked_without_torch(monkeypatch):
    assert usable_cpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert usable_gpus() == ("3", "1")
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert usable_gpus() == ()


@pytest.mark.parametrize(
    ("script", "gpus"),
    [("echo 0; echo 1", ("0", "1")), ("echo No devices were found; exit 6", ()), ("exit 1", ())],
)
def test_gpus_are_what_nvidia_smi_lists(monkeypatch, tmp_path: Path, script, gpus):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert usable_gpus() == gpus


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usable_gpus() == ()


def test_on_slurm_cpus_and_gpus_are_slurms_to_give():
    slurm = {"nodes": {"gpus_per_node": 4, "cpus_per_slot": 6}}
    found = config(
        experts={"threads": 3},
        checkpoint={"stores": 1},
        cluster={"backend": "slurm", "slurm": slurm, "prefix": {"ew1": ["nice"]}},
    )
    specs = {spec.worker: spec for spec in plan_steps(found)}
    assert list(specs) == ["aw0", "aw1", "ew0", "ew1", "cs0"]
    assert {spec.cpus for spec in specs.values()} == {None}
    assert not any(spec.shares_cpus for spec in specs.values())
    assert specs["aw0"].env == {"OMP_NUM_THREADS": "6"}
    assert specs["ew0"].env == {"OMP_NUM_THREADS": "3"}
    assert specs["cs0"].env == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert specs["ew1"].prefix == ("nice",)
    assert specs["aw0"].arguments(Incarnation("aw0", 2), Path("/r")) == [
        "--worker", "aw0", "--incarnation", "2", "--run-dir", "/r",
    ]  # fmt: skip


def test_every_component_says_what_its_slots_have():
    nodes = {"aw_nodes": {"cpus_per_slot": 8}, "ew_nodes": {"cpus_per_slot": 2}}
    slurm = {"topology": "hetjob", "allow_fragile": True, **nodes}
    specs = plan_steps(config(cluster={"backend": "slurm", "slurm": slurm}))
    threads = {spec.role: spec.env["OMP_NUM_THREADS"] for spec in specs}
    assert threads == {Role.AW: "8", Role.EW: "2"}
