from __future__ import annotations

import pytest

from tarragon_hpc.cli.logs import Line, follow, last_lines, log_files
from tarragon_hpc.errors import UserError


@pytest.fixture
def run_dir(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "aw0.1.log").write_text("a\nb\nc\n")
    (logs / "ew0.1.log").write_text("x\n")
    (logs / "ew0.2.log").write_text("y\nhalf a li")
    return tmp_path


def test_files_of_all_or_one_worker_or_one_incarnation(run_dir):
    def names(worker):
        return [p.name for p in log_files(run_dir, worker)]

    assert names(None) == ["aw0.1.log", "ew0.1.log", "ew0.2.log"]
    assert names("ew0") == ["ew0.1.log", "ew0.2.log"]
    assert names("ew0.2") == ["ew0.2.log"]


def test_unknown_worker_is_told_which_there_are(run_dir):
    with pytest.raises(UserError, match="'aw7' has no log; there are aw0, ew0"):
        log_files(run_dir, "aw7")


def test_last_lines_are_whole_ones(run_dir):
    lines, offsets = last_lines(log_files(run_dir, None), 2)
    assert lines == [
        Line("aw0.1", "b"), Line("aw0.1", "c"), Line("ew0.1", "x"), Line("ew0.2", "y"),
    ]  # fmt: skip
    assert offsets[run_dir / "logs" / "ew0.2.log"] == 2
    assert last_lines(log_files(run_dir, None), 0)[0] == []


def test_follow_sees_growth_and_new_files_and_ends_with_the_run(run_dir):
    _, offsets = last_lines(log_files(run_dir, None), 10)
    steps = iter(["grow", "new", "end"])

    def running():
        step = next(steps)
        if step == "grow":
            with (run_dir / "logs" / "ew0.2.log").open("a") as file:
                file.write("ne\n")
        if step == "new":
            (run_dir / "logs" / "aw1.1.log").write_bytes(b"\xff first\n")
        if step == "end":
            (run_dir / "logs" / "ew0.1.log").write_text("x\nlast words\n")
        return step != "end"

    lines = list(follow(lambda: log_files(run_dir, None), offsets, running, lambda _: None))
    assert lines == [
        Line("ew0.2", "half a line"), Line("aw1.1", "\ufffd first"), Line("ew0.1", "last words"),
    ]  # fmt: skip
