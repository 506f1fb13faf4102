"""The directory for sockets: the head's on its node, one for all workers on another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.node_dir import socket_directory, sweep
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.transport.interfaces import boot_id

if TYPE_CHECKING:
    from pathlib import Path

BOOT = boot_id()[:8]
LIVE = """
import os, sys, tempfile
from tarragon_hpc.cluster.node_dir import socket_directory
from tarragon_hpc.cluster.records import HeadRecord
tempfile.tempdir = sys.argv[1]
head = HeadRecord("r", 1, "far", "10.0.0.1", 1, "", "/nowhere", {}, sys.argv[2], 1, "other")
with socket_directory(head) as path:
    print(path, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch) -> Path:
    root = tmp_path / "tmp"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    return root


def head(runtime_dir: Path | str = "/nowhere", boot: str = "other", nonce: str = "a" * 12):
    return HeadRecord("r", 1, "far", "10.0.0.1", 1, "", str(runtime_dir), {}, nonce, 1, boot)


def living(tmp: Path, nonce: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE, str(tmp), nonce],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == f"{tmp}/tarragon-{nonce}-{BOOT}\n"
    return process


def test_on_the_heads_node_it_is_the_heads(tmp: Path):
    theirs = tmp / "tarragon-x"
    theirs.mkdir(mode=0o700)
    with socket_directory(head(theirs, boot_id())) as path:
        assert path == theirs
        assert os.listdir(theirs) == []
    assert os.listdir(tmp) == ["tarragon-x"]


@pytest.mark.parametrize("where", ["another node", "not there", "not private", "a link"])
def test_elsewhere_it_is_one_of_our_own_that_goes_with_the_last(tmp: Path, where: str):
    theirs = tmp / "theirs"
    if where != "not there":
        theirs.mkdir(mode=0o755 if where == "not private" else 0o700)
    if where == "a link":
        theirs = theirs.rename(tmp / "real").with_name("theirs")
        theirs.symlink_to("real")
    record = head(theirs, "other" if where == "another node" else boot_id())
    before = set(os.listdir(tmp))
    with socket_directory(record) as path:
        assert path == tmp / f"tarragon-{'a' * 12}-{BOOT}"
        assert path.stat().st_mode & 0o777 == 0o700
        with socket_directory(record) as same:
            assert same == path
            (same / "ew0.1.sock").touch()
        assert (path / "ew0.1.sock").exists()
    assert set(os.listdir(tmp)) == before


def test_what_the_dead_left_is_removed_by_who_comes_next_and_the_living_stay(tmp: Path):
    dead, alive = living(tmp, "d" * 12), living(tmp, "b" * 12)
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    (tmp / f"tarragon-{'c' * 12}-{BOOT}").mkdir(mode=0o700)  # died before it had the lock
    kept = [
        f"tarragon-{'e' * 12}-00000000",  # of another kernel: maybe of another node
        f"tarragon-{'e' * 12}-{BOOT}x",
        "tarragon-abcdefgh",  # a head's
    ]
    for name in kept:
        (tmp / name).mkdir(mode=0o700)
    open_to_all = tmp / f"tarragon-{'f' * 12}-{BOOT}"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    (tmp / f"tarragon-{'9' * 12}-{BOOT}").symlink_to(tmp)
    with socket_directory(head()) as path:
        expected = {*kept, path.name, f"tarragon-{'b' * 12}-{BOOT}", open_to_all.name}
        assert set(os.listdir(tmp)) == expected | {f"tarragon-{'9' * 12}-{BOOT}"}
    alive.communicate("\n", timeout=20)
    assert set(os.listdir(tmp)) == {*kept, open_to_all.name, f"tarragon-{'9' * 12}-{BOOT}"}


def test_a_removal_that_was_cut_short_is_finished(tmp: Path):
    half = tmp / f"tarragon-{'d' * 12}-{BOOT}.00ff00ff.gone"
    half.mkdir(mode=0o700)
    (half / "ew0.1.sock").touch()
    assert sweep(tmp, BOOT) == 1
    assert os.listdir(tmp) == []


def test_no_start_looks_at_more_than_some(tmp: Path):
    for number in range(100):
        (tmp / f"tarragon-{number:012x}-{BOOT}").mkdir(mode=0o700)
    assert sweep(tmp, BOOT) == 64
    assert sweep(tmp, BOOT) == 36


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_what_is_in_the_way_is_named(tmp: Path, how: str):
    path = tmp / f"tarragon-{'a' * 12}-{BOOT}"
    if how == "open":
        path.mkdir()
        path.chmod(0o755)
    elif how == "link":
        (tmp / "elsewhere").mkdir(mode=0o700)
        path.symlink_to("elsewhere")
    else:
        path.touch()
    with pytest.raises(ConfigError, match=f"^{path}: "), socket_directory(head()):
        pass
    assert path.exists()


def test_a_directory_that_cannot_be_made_is_named(tmp: Path):
    tmp.rmdir()
    with pytest.raises(ConfigError, match="cannot be made: No such file"), socket_directory(head()):
        pass


def test_nobody_loses_the_directory_while_others_come_and_go(tmp: Path):
    def worker(number: int) -> None:
        for turn in range(40):
            with socket_directory(head()) as path:
                socket = path / f"{number}.{turn}"
                socket.touch()
                os.sched_yield()
                socket.unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(worker, range(8)))
    assert os.listdir(tmp) == []
