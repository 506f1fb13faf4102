from __future__ import annotations

import json

from tarragon_hpc.generate.final import Report, failures_of, write_report
from tarragon_hpc.generate.outputs import Outcome
from tarragon_hpc.generate.progress import Progress
from tarragon_hpc.generate.report import Tally

USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 10}}


def test_numbers_go_on_from_those_of_earlier_heads():
    before = Tally(done=40, prompt_tokens=120, tokens=400)
    progress = Progress(100, before, since=1000.0, now=0.0)
    plain = progress.plain(0.0, 1500.0)
    assert (plain["state"], plain["done"], plain["tokens"]) == ("starting", 40, 400)
    assert (plain["tokens_per_s"], plain["eta_s"], plain["elapsed_s"]) == (0.0, None, 500.0)
    progress.begin(10.0)
    for second in range(1, 11):
        progress.add(Outcome(str(second), 200, USAGE), 10.0 + second)
    plain = progress.plain(20.0, 1520.0)
    assert (plain["state"], plain["done"], plain["tokens"]) == ("running", 50, 500)
    assert (plain["tokens_per_s"], plain["eta_s"]) == (10.0, 50.0)
    assert progress.line(20.0, 1520.0) == "batch: 50 of 100 done, 10 tokens/s, about 50 s left"


def test_the_speed_is_that_of_the_last_minute():
    progress = Progress(10_000, Tally(), since=0.0, now=0.0)
    progress.begin(0.0)
    for i in range(1000):
        progress.add(Outcome(str(i), 200, USAGE), i / 100)  # 100 a second
    for i in range(120):
        progress.add(Outcome(str(i), 200, USAGE), 10.0 + i)  # then 1 a second
    assert 9.5 < progress.plain(129.0, 0.0)["tokens_per_s"] < 10.5
    assert progress.plain(300.0, 0.0)["tokens_per_s"] == 0.0
    assert progress.plain(300.0, 0.0)["eta_s"] is None


def test_refused_and_failed_are_told_and_nothing_is_left_in_the_end():
    progress = Progress(2, Tally(), since=0.0, now=0.0)
    progress.begin(0.0)
    progress.add(Outcome("a", 400, {}), 1.0)
    progress.add(Outcome("b", 500, {}), 2.0)
    assert progress.line(3.0, 3.0) == "batch: 2 of 2 done, 0 tokens/s, 1 refused, 1 failed"
    assert progress.plain(3.0, 3.0)["eta_s"] == 0.0


def test_the_report_says_what_a_batch_came_to(tmp_path):
    line = {"time": 1.0, "mono": 1.0, "event": "worker lost", "worker": "ew1", "incarnation": 1,
            "detected": "exit"}  # fmt: skip
    tally = Tally(done=9, refused=1, failed=2, prompt_tokens=27, tokens=90, problem="c: HTTP 500")
    report = Report(
        "run-1", "s3://b/out", 10, tally, 45.0, heads=3, jobs=["7", "9"],
        failures=failures_of([line]),
    )  # fmt: skip
    assert (report.missing, report.complete) == (1, False)
    write_report(tmp_path, report)
    write_report(tmp_path, report)
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["answered"], found["missing"], found["tokens_per_s"]) == (6, 1, 2.0)
    assert (found["jobs"], found["heads"], found["failures_overcome"]) == (["7", "9"], 3, 1)
    assert found["failures"][0]["worker"] == "ew1"
    text = (tmp_path / "report.txt").read_text()
    assert "10: 6 answered, 1 refused, 2 failed, 1 without a result" in text
    assert "ew1.1 failed at" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.txt"]
    assert Report("r", "o", 1, Tally(done=1), 0.0, 1).complete
