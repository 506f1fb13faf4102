"""The worker program: what it refuses, and what a role's main gets to see."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tarragon_hpc.cluster import entry
from tarragon_hpc.cluster.rendezvous import HeadRecord, create_run, write_head
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = create_run(load_config({"model": {"path": "m"}}), tmp_path / "run")
    record = HeadRecord("run", 1, "here", "127.0.0.1", 4000, "http://127.0.0.1:1/v1", "/tmp/rt")
    write_head(path, record)
    return path


def run_entry(*args: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tarragon_hpc.cluster.entry", *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--worker": "bob"}, "--worker: 'bob' is not a worker id"),
        ({"--worker": "cs0"}, "--worker: 'cs0': no program for this role"),
        ({"--incarnation": "0"}, "argument --incarnation: 0: expected 1 or more"),
        ({"--incarnation": "x"}, "argument --incarnation: invalid _positive value: 'x'"),
        ({"--cpus": "a"}, "argument --cpus: invalid _cpu_list value: 'a'"),
        ({"--cpus": "99999"}, "--cpus: 99999: Invalid argument; allowed: "),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(run_dir, change, expected):
    args = {"--worker": "ew0", "--incarnation": "1", "--run-dir": str(run_dir)} | change
    status, stderr = run_entry(*(part for pair in args.items() for part in pair))
    assert status == 2
    assert expected in stderr
    assert "Traceback" not in stderr


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path):
    status, stderr = run_entry("--worker", "ew0", "--incarnation", "1", "--run-dir", str(tmp_path))
    assert status == 3
    assert f"{tmp_path}/head.json: No such file or directory" in stderr
    assert "Traceback" not in stderr


def test_a_secret_that_others_can_read_is_refused(run_dir: Path):
    (run_dir / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="must have mode 0600"):
        entry.make_context(run_dir, "ew0", 1, None)


def test_the_roles_main_gets_the_context_and_the_binding(run_dir: Path, monkeypatch):
    seen = []
    module = types.ModuleType("tarragon_hpc.expert.worker")
    module.main = seen.append
    bound = []
    monkeypatch.setitem(sys.modules, "tarragon_hpc.expert.worker", module)
    monkeypatch.setattr(entry, "configure", lambda process: None)
    monkeypatch.setattr(entry.faulthandler, "enable", lambda: None)
    monkeypatch.setattr(entry.os, "umask", lambda mask: None)
    monkeypatch.setattr(entry.os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    args = ["--worker", "ew5", "--incarnation", "3", "--run-dir", str(run_dir), "--cpus", "0,1"]
    assert entry.main(args) == 0
    (context,) = seen
    assert (context.worker, context.incarnation, context.cpus) == ("ew5", 3, (0, 1))
    assert context.head == ("127.0.0.1", 4000)
    assert context.run_dir == run_dir
    assert context.runtime_dir == Path("/tmp/rt")
    assert len(context.secret) == 32
    assert bound == [(0, 1)]


def test_a_worker_whose_parent_is_already_gone_never_starts(run_dir: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    status, _ = run_entry(
        *("--worker", "ew0", "--incarnation", "1", "--run-dir", str(run_dir)),
        *("--parent", str(gone.pid)),
    )
    assert status == -signal.SIGKILL
