"""The worker program: what it refuses, and what a role's main gets to see."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import types
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import entry
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    config = {"model": {"path": "m"}, "cluster": {"start_timeout_s": 0.4}}
    path = create_run(load_config(config), tmp_path / "run")
    rt = tmp_path / "rt"
    rt.mkdir(mode=0o700)
    write_head(path, HeadRecord("run", 1, "here", "127.0.0.1", 4000, "", str(rt)))
    return path


@pytest.fixture
def quiet(monkeypatch):
    """Keep `main` from changing the process that runs the tests."""
    monkeypatch.setattr(entry.os, "umask", lambda mask: None)
    monkeypatch.setattr(entry.faulthandler, "enable", lambda: None)
    monkeypatch.setattr(entry, "configure", lambda process: None)


def arguments(run_dir: Path, **change: str) -> list[str]:
    args = {"worker": "ew0", "incarnation": "1", "run-dir": str(run_dir)} | change
    return [part for name, value in args.items() for part in (f"--{name}", value)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"worker": "bob"}, "--worker: 'bob' is not a worker id"),
        ({"cpus": "99999"}, "--cpus: 99999: Invalid argument; allowed: "),
    ],
)
def test_bad_values_are_one_line_and_status_2(run_dir, quiet, caplog, change, expected):
    assert entry.main(arguments(run_dir, **change)) == 2
    (line,) = caplog.messages
    assert expected in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"incarnation": "0"}, "argument --incarnation: '0': expected 1, 2, …"),
        ({"incarnation": "x"}, "argument --incarnation: 'x': expected 1, 2, …"),
        ({"cpus": "a"}, "argument --cpus: 'a': expected CPU numbers, e.g. 0,1"),
        ({"cpus": "-1"}, "argument --cpus: '-1': expected CPU numbers, e.g. 0,1"),
    ],
)
def test_bad_arguments_are_usage_errors(run_dir, capsys, change, expected):
    with pytest.raises(SystemExit) as error:
        entry.main(arguments(run_dir, **change))
    assert error.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_head_that_never_writes_is_waited_for_and_then_named(run_dir: Path):
    (run_dir / "head.1.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "tarragon_hpc.cluster.entry", *arguments(run_dir)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    waiting, given_up = done.stderr.splitlines()
    missing = f"{run_dir}: no head has written where it listens"
    assert waiting.endswith(f"ew0.1 INFO cluster.joining: waiting for the head: {missing}")
    assert given_up.endswith(f"ew0.1 ERROR cluster.entry: no head within 0.4 s: {missing}")


def test_a_secret_that_others_can_read_is_refused(run_dir: Path):
    (run_dir / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="must have mode 0600"):
        entry.make_context(run_dir, Incarnation("ew0", 1), None, contextlib.ExitStack())


def test_the_roles_main_gets_the_context_and_the_binding(run_dir: Path, quiet, monkeypatch):
    seen = []
    module = types.ModuleType("tarragon_hpc.expert.worker")
    module.main = lambda context: seen.append(context) or 5
    bound = []
    monkeypatch.setitem(sys.modules, "tarragon_hpc.expert.worker", module)
    monkeypatch.setattr(entry.os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    assert entry.main(arguments(run_dir, worker="ew5", incarnation="3", cpus="0,1")) == 5
    (context,) = seen
    assert (context.worker, context.incarnation, context.cpus) == ("ew5", 3, (0, 1))
    assert context.head == ("127.0.0.1", 4000)
    assert context.run_dir == run_dir
    assert context.runtime_dir == run_dir.parent / "rt"
    assert len(context.secret) == 32
    assert bound == [(0, 1)]


def test_a_worker_whose_parent_is_already_gone_never_starts(run_dir: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", "tarragon_hpc.cluster.entry"]
    command += arguments(run_dir, parent=str(gone.pid))
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
