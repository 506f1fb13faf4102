"""What doctor says of the place for runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cli import doctor_files
from tarragon_hpc.cli.doctor_files import filesystem, run_root
from tarragon_hpc.cluster.directory import Directory

if TYPE_CHECKING:
    from pathlib import Path

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /net rw,relatime shared:7 - nfs4 server:/net rw
3 1 0:6 / /net/my\\040runs rw master:1 - lustre mds:/x rw
4 1 0:7 / /nets rw - newfs x rw
5 2 0:8 / /net rw - gpfs x rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/net", "gpfs"),
        ("/net/u", "gpfs"),
        ("/net/my runs/x", "lustre"),
        ("/nets/u", "newfs"),
        ("/netr", "ext4"),
    ],
)
def test_the_type_of_a_filesystem_is_that_of_the_mount_that_is_seen(path, kind):
    assert filesystem(path, MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "backend", "good", "says"),
    [
        ("nfs4", "slurm", True, "; of several nodes; exclusive create, atomic replace and fsync"),
        ("ext4", "local", True, "; of this node only; exclusive create"),
        ("tmpfs", "slurm", False, "is of this node only, and workers are started on others"),
        ("newfs", "slurm", True, "; whether other nodes see it is not known; "),
    ],
)
def test_reach_matters_where_workers_are_elsewhere(tmp_path: Path, kind, backend, good, says):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - {kind} x rw\n")
    present, detail = run_root(f"{tmp_path}/not/yet", backend, mounts)
    assert present is good
    assert detail.startswith(f"{tmp_path}/not/yet: {kind}, ")
    assert " GiB free" in detail
    assert says in detail
    assert os.listdir(tmp_path) == ["mountinfo"]


def test_an_object_store_is_refused_as_at_a_start():
    present, detail = run_root("s3://bucket/runs", "local")
    assert not present
    assert detail.startswith("run.root: 's3://bucket/runs': s3 has no exclusive create")


def test_a_file_is_no_place_for_runs(tmp_path: Path):
    (tmp_path / "file").touch()
    assert run_root(f"{tmp_path}/file", "local") == (False, f"{tmp_path}/file: is not a directory")


@pytest.mark.parametrize(
    ("options", "why"),
    [("size=8k,ro", "Read-only file system"), ("size=8k", "No space left on device")],
)
def test_where_nothing_can_be_written_it_says_why(tmp_path: Path, options: str, why: str):
    script = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -c "$3" "$1"'
    look = "import sys; from tarragon_hpc.cli.doctor_files import run_root as r; "
    look += "print(*r(sys.argv[1], 'local'))"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    done = subprocess.run(
        [*command, sys.executable, look], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(f"False {tmp_path}: tmpfs, 0.0 GiB free: "), done.stderr
    assert done.stdout.endswith(f": {why}\n")


def test_a_directory_that_lets_two_win_or_tears_files_is_found_out(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Directory, "claim", lambda self, name, text: True)
    assert "exclusive create does not work" in run_root(str(tmp_path), "local")[1]
    monkeypatch.undo()

    def torn(self, name, data):
        for size in (len(data) // 2, len(data)):
            (self.path / name).write_bytes(data[:size])

    monkeypatch.setattr(Directory, "write", torn)
    monkeypatch.setattr(doctor_files, "_TIMES", 250)
    assert "a file is not replaced atomically: " in run_root(str(tmp_path), "local")[1]
