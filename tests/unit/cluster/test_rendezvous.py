"""The run directory: made once, private, whole; found again by id, path or age."""

from __future__ import annotations

import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import node
from tarragon_hpc.cluster.records import MAX_BYTES, HeadRecord
from tarragon_hpc.cluster.rendezvous import (
    create_run,
    create_runtime_dir,
    find_run,
    is_runtime_dir,
    read_head,
    run_nonce,
    run_secret,
    write_head,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, ConfigError, UserError
from tarragon_hpc.transport.interfaces import boot_id

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


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return create_run(config(tmp_path))


def test_a_head_is_found_by_its_record_and_the_newest_counts(run_dir: Path):
    with pytest.raises(ClusterError, match="no head has written where it listens"):
        read_head(run_dir)
    first = write_head(run_dir, RECORD)
    assert read_head(run_dir) == first
    nonce = run_nonce(run_secret(run_dir))
    assert run_dir.name.endswith(nonce[:6])
    assert (first.nonce, first.incarnation, first.boot_id) == (nonce, 1, boot_id())
    assert first.interfaces == node.interfaces()
    second = write_head(run_dir, RECORD)
    assert second.incarnation == 2
    assert read_head(run_dir) == second
    assert mode(run_dir / "head.2.json") == 0o600


def test_two_heads_never_have_one_number(run_dir: Path):
    (run_dir / "head.1.claim").touch()
    (run_dir / "head.2.json").touch()  # whatever that is
    assert write_head(run_dir, RECORD).incarnation == 2
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda _: write_head(run_dir, RECORD), range(16)))
    assert sorted(r.incarnation for r in written) == list(range(3, 19))
    assert read_head(run_dir).incarnation == 18


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[:-9], "is half-written"),
        (lambda data: b"", "is empty"),
        (lambda data: data.replace(b"4000", b"4001"), "its checksum is wrong"),
        (lambda data: data + b" " * MAX_BYTES, "is too large"),
        (lambda data: data.replace(b"record 1", b"record 2"), "has format 2"),
    ],
)
def test_a_record_that_is_no_good_is_passed_over_and_named(run_dir: Path, spoil, why):
    first = write_head(run_dir, RECORD)
    good = (run_dir / "head.1.json").read_bytes()
    (run_dir / "head.2.json").write_bytes(spoil(good))
    assert read_head(run_dir) == first
    (run_dir / "head.1.json").unlink()
    with pytest.raises(ClusterError, match=f"head.2.json .*{why}"):
        read_head(run_dir)


def test_records_of_another_run_or_another_number_are_not_ours(run_dir: Path, tmp_path: Path):
    other = create_run(config(tmp_path / "other"))
    write_head(other, RECORD)
    shutil.copy(other / "head.1.json", run_dir / "head.7.json")
    with pytest.raises(ClusterError, match="head.7.json belongs elsewhere .run "):
        read_head(run_dir)
    first = write_head(run_dir, RECORD)
    shutil.copy(run_dir / "head.1.json", run_dir / "head.9.json")  # an old head dressed up
    assert read_head(run_dir) == first


def test_what_a_dead_writer_left_is_not_seen(run_dir: Path):
    (run_dir / ".head.5.json.0a0a0a").write_bytes(b"tarragon-rec")
    first = write_head(run_dir, RECORD)
    assert first.incarnation == 1
    assert read_head(run_dir) == first


def test_clocks_do_not_matter(run_dir: Path):
    """The times of files are an hour off, in the wrong order, and before the run began."""
    write_head(run_dir, RECORD)
    second = write_head(run_dir, RECORD)
    now = time.time()
    os.utime(run_dir / "head.1.json", (now + 3600, now + 3600))
    os.utime(run_dir / "head.2.json", (now - 3600, now - 3600))
    os.utime(run_dir, (0, 0))
    assert read_head(run_dir) == second


@pytest.mark.parametrize("text", ["s3://bucket/runs", "memory://runs", "nonsense://x"])
def test_only_directories_hold_runs(tmp_path: Path, text: str):
    given = load_config({"model": {"path": "m"}, "run": {"root": text}})
    with pytest.raises(ConfigError, match=f"run.root: '{text}': .*; allowed: a directory"):
        create_run(given)
    given = load_config({"model": {"path": "m"}, "run": {"root": f"file://{tmp_path}/runs"}})
    assert create_run(given).parent == tmp_path / "runs"


def test_runs_are_found_by_id_by_directory_and_by_age(tmp_path: Path):
    old = create_run(config(tmp_path), now=0.0)
    new = create_run(config(tmp_path), now=9.0)
    # Somebody may have touched the file: names have the time.
    os.utime(old / "config.yaml", (200, 200))
    os.utime(new / "config.yaml", (100, 100))
    elsewhere = create_run(config(tmp_path), tmp_path / "x" / "elsewhere")
    assert find_run(tmp_path) == new
    assert find_run(tmp_path, old.name) == old
    assert find_run(tmp_path, str(elsewhere)) == elsewhere
    with pytest.raises(UserError, match="'nope' is neither a run under"):
        find_run(tmp_path, "nope")
    with pytest.raises(UserError, match="no run under"):
        find_run(tmp_path / "nothing")


def test_runs_without_a_time_in_their_name_are_found_by_their_age(tmp_path: Path):
    stamped = create_run(config(tmp_path), now=1_000.0)
    odd = create_run(config(tmp_path), tmp_path / "mine-99999999T999999Z-abcdef")
    os.utime(odd / "config.yaml", (999, 999))
    assert find_run(tmp_path) == stamped
    os.utime(odd / "config.yaml", (1001, 1001))
    assert find_run(tmp_path) == odd


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
