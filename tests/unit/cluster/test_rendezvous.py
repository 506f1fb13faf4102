"""The run directory: made once, private, whole; found again by id, path or age."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.rendezvous import (
    HeadRecord,
    create_run,
    create_runtime_dir,
    find_run,
    is_runtime_dir,
    read_head,
    run_secret,
    write_atomically,
    write_head,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, ConfigError, UserError

if TYPE_CHECKING:
    from pathlib import Path

RECORD = HeadRecord("r", 12, "node1", "127.0.0.1", 4000, "http://127.0.0.1:8000/v1", "/tmp/x")


def config(root: Path, **run: str):
    return load_config(
        {"model": {"path": "/models/Mixtral 8x7B"}, "run": {"root": str(root)} | run}
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_run_has_a_name_a_time_a_nonce_and_is_private(tmp_path: Path):
    wanted = config(tmp_path / "runs")
    path = create_run(wanted, now=0.0)
    assert path.parent == tmp_path / "runs"
    assert path.name.startswith("Mixtral-8x7B-19700101T000000Z-")
    assert mode(path) == 0o700
    assert mode(path / "secret") == 0o600
    assert mode(path / "config.yaml") == 0o600
    assert mode(path / "logs") == 0o700
    assert len(run_secret(path)) == 32
    assert load_config(path / "config.yaml") == wanted
    again = create_run(wanted, now=0.0)
    assert again != path
    assert run_secret(again) != run_secret(path)


def test_the_name_can_be_chosen(tmp_path: Path):
    assert create_run(config(tmp_path, name="nightly"), now=0.0).name.startswith("nightly-1970")


def test_a_given_directory_may_exist_but_not_hold_anything(tmp_path: Path):
    given = tmp_path / "a" / "b"
    assert create_run(config(tmp_path), given) == given
    with pytest.raises(ConfigError, match="--run-dir: .*/a/b: is not empty"):
        create_run(config(tmp_path), given)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    assert mode(create_run(config(tmp_path), empty)) == 0o700


def test_a_root_that_cannot_hold_runs_names_the_key(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run.root: .*Not a directory"):
        create_run(config(tmp_path / "file"))


def test_the_head_record_is_read_back_or_refused(tmp_path: Path):
    with pytest.raises(ClusterError, match="head.json: No such file"):
        read_head(tmp_path)
    write_head(tmp_path, RECORD)
    assert read_head(tmp_path) == RECORD
    assert os.listdir(tmp_path) == ["head.json"]
    (tmp_path / "head.json").write_bytes(b'{"run": 3')
    with pytest.raises(ClusterError, match="is damaged"):
        read_head(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_runs_are_found_by_id_by_directory_and_by_age(tmp_path: Path):
    old = create_run(config(tmp_path), now=0.0)
    new = create_run(config(tmp_path), now=9.0)
    os.utime(old / "config.yaml", (100, 100))
    os.utime(new / "config.yaml", (200, 200))
    elsewhere = create_run(config(tmp_path), tmp_path / "x" / "elsewhere")
    assert find_run(tmp_path) == new
    assert find_run(tmp_path, old.name) == old
    assert find_run(tmp_path, str(elsewhere)) == elsewhere
    with pytest.raises(UserError, match="'nope' is neither a run under"):
        find_run(tmp_path, "nope")
    with pytest.raises(UserError, match="no run under"):
        find_run(tmp_path / "nothing")


def test_only_our_own_runtime_directories_are_taken_for_such(tmp_path: Path):
    path = create_runtime_dir()
    try:
        assert mode(path) == 0o700
        assert len(str(path)) < 60
        assert is_runtime_dir(path)
        assert not is_runtime_dir(tmp_path)
        assert not is_runtime_dir(path.parent)
        assert not is_runtime_dir(path / ".." / path.name / "..")
    finally:
        path.rmdir()
    assert not is_runtime_dir(path)
