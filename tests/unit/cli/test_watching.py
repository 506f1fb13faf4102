from __future__ import annotations

import io
import re

from rich.console import Console

from tarragon_hpc.cli.watching import watch

WAITS = {"state": "pending", "reason": "job 7 waits: Priority", "run": "r1", "epoch": 0,
         "endpoint": None, "workers": [], "failures": []}  # fmt: skip
SERVES = WAITS | {
    "state": "serving", "reason": "", "endpoint": "http://n0:1/v1",
    "workers": [{"id": "aw0", "role": "aw", "state": "serving", "incarnation": 1, "pid": 1,
                 "host": "n0", "experts": []}],
}  # fmt: skip
ENDED = SERVES | {"state": "ended", "endpoint": None, "workers": []}


def looks(*statuses):
    rest = iter(statuses)

    async def look():
        return next(rest)

    return look


def over(status):
    return status["state"] == "ended"


def test_without_a_terminal_a_line_for_everything_new(monkeypatch):
    monkeypatch.setattr("tarragon_hpc.cli.watching._LOOK_S", 0)
    console = Console(file=io.StringIO(), width=20)
    watch(looks(WAITS, WAITS, SERVES, ENDED), over, console)
    lines = console.file.getvalue().splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\dZ ", "", line) for line in lines] == [
        "pending: job 7 waits: Priority",
        "serving; AW 1 serving; http://n0:1/v1",
        "ended",
    ]


def test_on_a_terminal_in_place(monkeypatch):
    monkeypatch.setattr("tarragon_hpc.cli.watching._LOOK_S", 0)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    watch(looks(WAITS, SERVES, ENDED), over, console)
    text = console.file.getvalue()
    assert "job 7 waits: Priority" in text
    assert "\x1b[1A" in text  # the cursor goes up: the next picture replaces this one
    assert "ended" in text.rpartition("\x1b[1A")[2] or "ended" in text
