"""The journal: what was written is read back, whatever cut it short."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import Journal, read_journal

if TYPE_CHECKING:
    from pathlib import Path


def events_of(path: Path) -> list[ev.Event]:
    return [entry.event for entry in read_journal(path)]


def test_replaying_a_journal_gives_the_state_that_was_left(tmp_path: Path, scenario):
    scenario.running()
    scenario.happen(ev.WorkerReady, "ew0", 7, {"stale": 1})
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    journal = Journal(tmp_path / "j")
    journal.append(scenario.events[:5])
    journal.append(scenario.events[5:])
    journal.close()
    journal.close()
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600
    assert events_of(tmp_path / "j") == scenario.events
    assert replay(events_of(tmp_path / "j")) == scenario.state


def test_every_batch_is_synced_before_append_returns(tmp_path: Path, monkeypatch):
    journal = Journal(tmp_path / "j")
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((tmp_path / "j").read_bytes()))
    journal.append([ev.RunEnded(1.0), ev.RunEnded(2.0)])
    journal.close()
    assert [line.count(b"\n") for line in synced] == [2]


@given(cut=st.integers(min_value=0))
def test_a_journal_cut_anywhere_loses_only_its_last_line_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j"
    written = [ev.WorkerStarted(float(i), "ew0", i, i) for i in range(1, 6)]
    journal = Journal(path)
    journal.append(written)
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[: cut % (len(data) + 1)])
    kept = events_of(path)
    assert kept == written[: len(kept)]
    journal = Journal(path)
    journal.append([ev.RunEnded(9.0)])
    journal.close()
    assert events_of(path) == [*kept, ev.RunEnded(9.0)]


def test_a_long_torn_line_is_found_and_removed(tmp_path: Path):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append([ev.RunEnded(1.0)])
    journal.close()
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    Journal(path).close()
    assert events_of(path) == [ev.RunEnded(1.0)]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b'{"wall": 1, "event": {"type": "Nonsense", "at": 1}}',
        b'{"wall": 1, "event": {"type": "RunEnded", "at": 1, "more": 2}}',
        b'{"wall": 1, "event": {"type": "WorkerFenced", "at": 1, "worker": 3, "incarnation": 1}}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes):
    path = tmp_path / "j"
    journal = Journal(path)
    journal.append([ev.RunEnded(1.0)])
    journal.close()
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ClusterError, match="line 2 is damaged"):
        read_journal(path)


def test_a_missing_journal_is_named(tmp_path: Path):
    with pytest.raises(ClusterError, match="nowhere: No such file"):
        read_journal(tmp_path / "nowhere")
