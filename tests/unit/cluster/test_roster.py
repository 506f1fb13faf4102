"""What the files of workers tell a head, and what they are not allowed to tell."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.joining import claim, publish
from tarragon_hpc.cluster.records import WorkerRecord, encode
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.cluster.roster import Roster, explain, incarnation_of
from tarragon_hpc.ids import Incarnation

if TYPE_CHECKING:
    from pathlib import Path

RECORD = WorkerRecord(
    "n0", "ew", "ew0", 2, "node7", "boot", {"ib0": "10.0.0.7", "lo": "127.0.0.1"}, {}, 70
)


def record(**change) -> bytes:
    return encode(msgspec.structs.replace(RECORD, **change))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("ew0.2.json", record(nonce="n1"), "another run"),
        ("ew0.3.json", record(), "misplaced"),
        ("ew1.2.json", record(), "misplaced"),
        ("ew0.1.json", record(incarnation=1), "older incarnation"),
        ("ew0.9.json", record(incarnation=9)[:-1], "damaged"),
        ("ew0.9.json", b"", "damaged"),
        ("ew0.json", record(), "not a file of a worker"),
        ("../ew0.2.json", record(), "not a file of a worker"),
        ("ew0.02.json", record(), "not a file of a worker"),
    ],
)
def test_what_is_not_of_this_run_and_incarnation_changes_nothing(name, data, reason):
    roster = Roster("n0")
    assert roster.see("ew0.2.json", record()) is None
    assert roster.see(name, data)
    assert roster.records == {"ew0": RECORD}
    assert roster.ignored == {reason: 1}


def test_a_newer_incarnation_takes_the_place_of_the_older_in_any_order():
    third = msgspec.structs.replace(RECORD, incarnation=3)
    for order in ((RECORD, third), (third, RECORD)):
        roster = Roster("n0")
        for each in order:
            roster.see(f"ew0.{each.incarnation}.json", encode(each))
        assert roster.records == {"ew0": third}
        assert roster.ignored == {"older incarnation": 1}


def test_whose_file_it_is():
    assert incarnation_of("aw12.3.claim") == ("aw12", 3)
    assert incarnation_of("xw0.1.json") is None
    assert incarnation_of("ew0.0.json") is None


def test_why_workers_are_absent_is_read_from_their_files_only(run_with_head: Path):
    """Among files of others, of older incarnations, and of times an hour off."""
    run, head = Directory(run_with_head), read_head(run_with_head)
    workers = run_with_head / "workers"
    who = [Incarnation(f"ew{n}", 2) for n in range(3)]
    claim(run, who[1])
    claim(run, who[2])
    publish(run, who[2], head.nonce, {})
    claim(run, Incarnation("ew0", 1))
    publish(run, Incarnation("ew0", 1), head.nonce, {})  # an older incarnation
    publish(run, who[1], "of another run", {})
    for number, path in enumerate(sorted(workers.iterdir())):
        shifted = time.time() + (-3600 if number % 2 else 3600)
        os.utime(path, (shifted, shifted))
    text = explain(run_with_head, head, who)
    unseen, begun, there = text.split("; ")
    assert unseen.startswith("nothing was written by ew0.2: no process, or it does not see")
    assert begun.startswith(f"began but were not ready to connect: ew1.2 (pid {os.getpid()} on ")
    assert there.startswith("ready but never reached 127.0.0.1:4000 (a firewall?): ew2.2 (pid ")
    assert "127.0.0.1" in there.rpartition("(pid")[2]


def test_of_many_only_some_are_named():
    absent = [Incarnation(f"ew{n}", 1) for n in range(1000)]
    roster = Roster("n0")
    text = roster.explain(absent, None)
    assert "ew0.1, ew1.1" in text
    assert "ew7.1 and 992 more: " in text
    assert len(text) < 300


def test_a_directory_that_is_gone_is_the_explanation(tmp_path: Path, run_with_head: Path):
    head = read_head(run_with_head)
    assert explain(tmp_path / "gone", head, [Incarnation("ew0", 1)]) == (
        f"{tmp_path}/gone/workers: No such file or directory"
    )
