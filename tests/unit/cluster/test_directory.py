"""The primitives on a real directory: whole files, one winner, no question about the future."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.directory import Directory

if TYPE_CHECKING:
    from pathlib import Path

CLAIMANT = """
import sys
from pathlib import Path
from tarragon_hpc.cluster.directory import Directory
directory = Directory(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(directory.claim(f"{n}", sys.argv[2]) for n in range(2000)))
"""


def test_a_file_appears_whole_private_and_alone(tmp_path: Path):
    directory = Directory(tmp_path)
    directory.write("a.json", b"text")
    assert (tmp_path / "a.json").read_bytes() == b"text"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a.json"]
    assert directory.read("a.json", 100) == b"text"
    assert directory.read("a.json", 2) == b"te"
    assert directory.count == Counter(create=1, sync=1, rename=1, sync_dir=1, read=2)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch, broken: str):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        Directory(tmp_path).write("a.json", b"text")
    assert os.listdir(tmp_path) == []


def test_a_list_shows_what_is_there_and_news_only_once(tmp_path: Path):
    directory = Directory(tmp_path)
    directory.claim("b", "")
    (tmp_path / ".a.json.0f0f").touch()  # a writer that died, or is at it
    assert directory.names() == ["b"]
    assert directory.fresh() == ["b"]
    directory.write("a.json", b"")
    assert directory.fresh() == ["a.json"]
    assert directory.fresh() == []


def test_of_all_processes_one_gets_a_name(tmp_path: Path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(won) == 2000
    holders = Counter(path.read_text() for path in tmp_path.iterdir())
    assert holders == {str(n): count for n, count in enumerate(won) if count}


AUDITED = """
import json, sys
from pathlib import Path
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.joining import claim, find_head, publish
from tarragon_hpc.ids import Incarnation
seen = []
def hook(event, arguments):
    if event.startswith(("open", "os.", "shutil", "glob")) and any(
        sys.argv[1] in str(a) for a in arguments
    ):
        seen.append((event, str(arguments[0])))
run, who = Directory(Path(sys.argv[1])), Incarnation("ew0", 1)
sys.addaudithook(hook)
found = find_head(run)
claim(run, who)
publish(run, who, found.nonce, {"kind": "tcp"})
print(json.dumps({"seen": seen, "count": run.count}))
"""


def test_nothing_is_done_that_is_not_counted(run_with_head: Path):
    """What a worker does with the run directory, as the interpreter itself reports it."""
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(run_with_head)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = json.loads(done.stdout)
    count = Counter(told["count"])
    assert count == Counter(scan=1, read=3, create=2, sync=1, rename=1)
    events = Counter(event for event, _ in told["seen"])
    assert events == {"os.scandir": 1, "open": 5, "os.rename": 1}, told["seen"]
