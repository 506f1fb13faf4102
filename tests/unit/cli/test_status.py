from __future__ import annotations

import io

import pytest
from rich.console import Console

from tarragon_hpc.cli.status import links_in_words, ranges, render

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
