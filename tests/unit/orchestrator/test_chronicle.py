"""The journals of a run with more than one head."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import Journal, journal_name, read_chronicle

if TYPE_CHECKING:
    from pathlib import Path

CREATED = ev.RunCreated(0.0, "r", ["aw0", "ew0"], 2, {"ew0": [0, 1]}, {"ew0": []})


def write(run_dir: Path, head: int, *events: ev.Event) -> None:
    journal = Journal(run_dir / journal_name(head))
    journal.append(events)
    journal.close()


def told(run_dir: Path) -> list[ev.Event]:
    return [entry.event for entry in read_chronicle(run_dir).entries]


def test_a_later_head_says_what_of_the_earlier_ones_counts(tmp_path: Path):
    assert read_chronicle(tmp_path).head == 0
    started = ev.WorkerStarted(1.0, "ew0", 1, 10)
    write(tmp_path, 1, CREATED, started)
    changed = ev.HeadChanged(2.0, 2, {1: 2}, 0.0)
    write(tmp_path, 2, changed)
    late = ev.WorkerStarted(3.0, "aw0", 1, 11)
    write(tmp_path, 1, late)  # the first head does not know yet that it is none
    assert told(tmp_path) == [CREATED, started, changed]
    assert read_chronicle(tmp_path).counted == {1: 2, 2: 1}
    # The third has died before it wrote anything, and the fourth has never heard of it.
    Journal(tmp_path / journal_name(3)).close()
    third = ev.HeadChanged(4.0, 4, {1: 2, 2: 1}, 0.0)
    write(tmp_path, 4, third)
    write(tmp_path, 3, ev.HeadChanged(5.0, 3, {1: 3, 2: 1}, 0.0))
    assert told(tmp_path) == [CREATED, started, changed, third]
    assert replay(told(tmp_path)).head == 4


def test_a_run_may_begin_with_any_head(tmp_path: Path):
    Journal(tmp_path / journal_name(1)).close()
    write(tmp_path, 2, ev.RunCreated(0.0, "r", ["aw0"], 0, {}, {}, head=2))
    assert replay(told(tmp_path)).head == 2


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (ev.RunEnded(1.0), "journal.2.jsonl: line 1 is not how a journal begins"),
        (ev.HeadChanged(1.0, 2, {1: 9}, 0.0), "journal.jsonl: has 1 entries of 9"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, first, why):
    write(tmp_path, 1, CREATED)
    write(tmp_path, 2, first)
    with pytest.raises(ClusterError, match=why):
        read_chronicle(tmp_path)


@given(delays=st.lists(st.floats(0, 50), min_size=1, max_size=8), lead=st.floats(-1e6, 2e9))
def test_clocks_are_compared_by_the_entry_that_was_written_soonest(tmp_path_factory, delays, lead):
    path = tmp_path_factory.mktemp("run")
    journal = Journal(path / journal_name(1))
    for number, delay in enumerate(delays):
        at = 100.0 * number
        event = CREATED if number == 0 else ev.WorkerStarted(at, "ew0", number, 1)
        with mock.patch("time.time", lambda at=at, delay=delay: at + lead + delay):
            journal.append([event])
    journal.close()
    assert read_chronicle(path).lead_s == pytest.approx(lead + min(delays), abs=1e-3)
