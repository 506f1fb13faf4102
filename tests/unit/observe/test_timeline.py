"""One line per event; a failure's later lines say how long after."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING

from tarragon_hpc.observe.timeline import LOST, Timeline, read_timeline

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_have_both_clocks_and_failures_their_distance(tmp_path: Path):
    path = tmp_path / "timeline.jsonl"
    seconds = count()
    timeline = Timeline(path, wall=lambda: 1000.5, mono=lambda: float(next(seconds)))
    timeline.record("run created", run="r")
    timeline.record("worker started", worker="ew0", incarnation=1, pid=3)
    timeline.record(LOST, worker="ew0", incarnation=1, detected="connection", reason="closed")
    timeline.record("exit known", worker="ew0", incarnation=1, exit="killed by SIGKILL")
    timeline.record("worker started", worker="ew0", incarnation=2, pid=4)
    timeline.close()
    timeline.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    base = {"time": 1000.5}
    ew0 = {"worker": "ew0", "incarnation": 1}
    assert lines == [
        base | {"mono": 0.0, "event": "run created", "run": "r"},
        base | {"mono": 1.0, "event": "worker started", "pid": 3} | ew0,
        base | {"mono": 2.0, "event": LOST, "detected": "connection", "reason": "closed"} | ew0,
        base
        | {"mono": 3.0, "event": "exit known", "exit": "killed by SIGKILL", "after_s": 1.0}
        | ew0,
        base
        | {"mono": 4.0, "event": "worker started", "pid": 4, "worker": "ew0", "incarnation": 2},
    ]


def test_a_line_can_be_read_as_soon_as_it_was_written(tmp_path: Path):
    path = tmp_path / "timeline.jsonl"
    timeline = Timeline(path)
    timeline.record("run created")
    assert json.loads(path.read_text())["event"] == "run created"
    timeline.close()


def test_listeners_get_what_is_written(tmp_path: Path):
    path, heard = tmp_path / "timeline.jsonl", []
    assert read_timeline(path) == []
    timeline = Timeline(path)
    timeline.record("before")
    timeline.listen(heard.append)
    timeline.record("worker started", worker="ew0", incarnation=1, pid=3)
    timeline.close()
    assert heard == read_timeline(path)[1:]
    with path.open("ab") as file:
        file.write(b'{"time": 1, "ev')
    assert len(read_timeline(path)) == 2
