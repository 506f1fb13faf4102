from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tarragon_hpc.cli.status import duration, links_in_words, ranges, render, summary, with_log

STATUS = {
    "run": "tiny-1",
    "state": "running",
    "reason": "",
    "endpoint": "http://127.0.0.1:8000/v1",
    "epoch": 3,
    "workers": [
        {
            "id": "aw0", "role": "aw", "state": "serving", "incarnation": 1, "pid": 12,
            "host": "n1", "experts": [], "stats": {"tokens": 7.0},
            "links": {"ew0": "rdma", "ew1": "tcp"},
        },
        {
            "id": "ew0", "role": "ew", "state": "dead", "incarnation": 2, "pid": None,
            "host": None, "experts": [0, 1, 2, 5], "reason": "its connection was closed",
            "exit": "killed by SIGKILL",
        },
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([7, 0, 1, 9, 8], "0-1,7-9"), ([1, 3], "1,3")],
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("links", "text"),
    [
        ({}, ""),
        ({"ew0": "shm", "ew1": "shm", "cs0": "shm"}, "all shm"),
        ({"ew0": "shm", "ew1": "tcp"}, "ew0 shm, ew1 tcp"),
        (
            {"cs0": "tcp", "ew0": "rdma", "ew1": "rdma", "ew10": "tcp", "ew2": "rdma"},
            "cs0 tcp, ew0-2 rdma, ew10 tcp",
        ),
    ],
)
def test_links(links, text):
    assert links_in_words(links) == text


def test_table_has_every_worker_and_why_it_is_dead():
    console = Console(width=120, file=io.StringIO())
    console.print(render(STATUS))
    text = console.file.getvalue()
    assert "tiny-1  running  epoch 3  http://127.0.0.1:8000/v1" in text
    assert "ew0 rdma, ew1 tcp" in text
    (line,) = [line for line in text.splitlines() if line.startswith("ew0")]
    assert "dead" in line
    assert "0-2,5" in line
    assert "its connection was closed, killed by SIGKILL" in line


def test_coverage_and_the_last_failures_are_told():
    failure = {
        "worker": "ew0", "incarnation": 1, "time": 0.0, "fault": "kill", "how": "lost",
        "by": "aw0.1", "seconds": {"detected": 0.0012}, "masked_by": [], "over": False,
    }  # fmt: skip
    earlier = [failure | {"incarnation": i} for i in (7, 8, 9)]
    status = STATUS | {
        "coverage": {"lines": ["ew0: every expert has a shadow"]},
        "failures": [*earlier, failure],
    }
    console = Console(width=120, file=io.StringIO())
    console.print(render(status))
    text = console.file.getvalue()
    assert "ew0: every expert has a shadow" in text
    assert "ew0.1 killed at 00:00:00Z: noticed after 1.2 ms (lost, by aw0.1)" in text
    assert "ew0.9 killed" in text
    assert "ew0.7" not in text


def test_what_is_protected_is_told_before_what_may_be_lost():
    lines = ["checkpoints: 1 of 2 stores serve", "unprotected: 3 requests: why"]
    status = STATUS | {"checkpoint": {"lines": lines}, "coverage": {"lines": ["coverage"]}}
    console = Console(width=120, file=io.StringIO())
    console.print(render(status))
    told = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in told if line.rstrip()][-3:] == [*lines, "coverage"]


def shown(status, width=140):
    console = Console(width=width, file=io.StringIO())
    console.print(render(status), crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def job(job_id, state, **more):
    found = {
        "job": str(job_id), "kind": "head", "number": 1, "worker": "", "submitted": 1.0,
        "state": state, "over": False, "reason": "", "expected_start": "", "left_s": None,
        "nodes": [],
    }  # fmt: skip
    return found | more


def test_how_many_of_each_role_are_in_each_state():
    assert summary(STATUS) == "AW 1 serving; EW 1 dead"
    more = STATUS["workers"] + [STATUS["workers"][0] | {"id": f"aw{i}"} for i in (1, 2)]
    more += [STATUS["workers"][0] | {"id": "aw3", "state": "starting"}]
    assert summary({"workers": more}) == "AW 3 serving, 1 starting; EW 1 dead"
    assert summary({"workers": []}) == ""
    assert "AW 1 serving; EW 1 dead" in shown(STATUS)


def test_a_run_whose_job_waits():
    status = {
        "run": "r1", "state": "pending", "reason": "job 7 waits: Priority", "endpoint": None,
        "epoch": 0, "workers": [], "failures": [],
        "jobs": [job(7, "PENDING", reason="Priority", expected_start="2026-11-27T10:00:00")],
    }  # fmt: skip
    assert shown(status) == [
        "r1  pending  epoch 0  no endpoint",
        "job 7 waits: Priority",
        "job  for   state    left  nodes",
        "7    head  pending               Priority (other jobs come first), expected to start"
        " 2026-11-27T10:00:00",
    ]


def test_jobs_that_are_over_are_shown_only_if_nothing_else_is():
    over = job(7, "TIMEOUT", over=True, reason="TimeLimit")
    runs = job(8, "RUNNING", number=2, left_s=3900.0, nodes=["n0", "n1"])
    extra = job(9, "PENDING", worker="ew1.3", reason="Resources")
    text = shown(STATUS | {"jobs": [over, runs, extra]})
    assert "8    chain 2  running  1:05:00  n0,n1" in text
    assert any(line.startswith("9    ew1.3    pending") for line in text)
    assert not any(line.startswith("7 ") for line in text)
    assert any("timeout" in line for line in shown(STATUS | {"jobs": [over]}))


def test_the_ssh_line_is_one_line():
    line = "ssh -N -L 40123:127.0.0.1:40123 -J ann@login1.example.org ann@compute-node-17"
    assert f"from elsewhere: {line}" in shown(STATUS | {"tunnel": line}, width=60)


def test_the_steps_of_workers():
    assert not any("step" in line for line in shown(STATUS))
    workers = [STATUS["workers"][0] | {"step": "8.3"}, STATUS["workers"][1]]
    (line,) = [line for line in shown(STATUS | {"workers": workers}) if line.startswith("aw0")]
    assert "8.3" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0:00"),
        (65.9, "1:05"),
        (3600.0, "1:00:00"),
        (2 * 86400 + 3720.0, "2-01:02"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_end_of_the_log_tells_why_there_is_no_head(tmp_path):
    log = tmp_path / "head.log"
    log.write_text("starting\nerror: [model.path] is bad\n")
    status = STATUS | {"state": "failed", "job_log": str(log)}
    assert with_log(status | {"state": "running"}).get("log_tail") is None
    assert with_log(STATUS | {"state": "failed"}).get("log_tail") is None
    text = shown(with_log(status))
    assert text[-3:] == [f"the end of {log}:", "  | starting", "  | error: [model.path] is bad"]


def test_a_worker_that_waits_for_its_job():
    waits = {
        "id": "ew1", "role": "ew", "state": "queued", "incarnation": 3, "pid": None, "host": None,
        "experts": [], "job": "14", "pending_reason": "Priority",
        "expected_start": "2026-11-27T10:00:00",
    }  # fmt: skip
    (line,) = [s for s in shown(STATUS | {"workers": [waits]}) if s.startswith("ew1")]
    assert re.sub(r"\s{2,}", "  ", line) == (
        "ew1  queued  3  14  Priority (other jobs come first), expected to start"
        " 2026-11-27T10:00:00"
    )


def test_a_later_head_and_the_nodes_of_slurm_are_shown():
    assert not any("head" in line for line in shown(STATUS | {"head": 1}))
    assert "tiny-1  running  epoch 3  head 2  http://127.0.0.1:8000/v1" in shown(
        STATUS | {"head": 2}
    )
    workers = [STATUS["workers"][0] | {"node": "n7"}]
    (line,) = [s for s in shown(STATUS | {"workers": workers}) if s.startswith("aw0")]
    assert "n7" in line.split()
    assert "n1" not in line.split()
