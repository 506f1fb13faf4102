"""The batch process: what it does when a head ends, and with signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.supervisor import (
    EXIT_BUG,
    EXIT_SUPERSEDED,
    Supervisor,
    follow,
    head_command,
)
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("returncode", "told", "status"),
    [
        (0, False, 0),
        (2, False, 2),
        (3, False, 3),
        (-9, False, None),
        (-11, False, None),
        (EXIT_BUG, False, None),
        (EXIT_SUPERSEDED, False, None),
        (EXIT_SUPERSEDED, True, None),
        (-15, True, 143),
        (EXIT_BUG, True, EXIT_BUG),
        (0, True, 0),
    ],
)
def test_only_who_was_killed_or_had_a_bug_is_followed(returncode, told, status):
    assert follow(returncode, [], 100.0, told=told).status == status


def test_heads_that_die_again_and_again_are_given_longer_pauses_and_then_up():
    deaths: list[float] = []
    pauses = []
    for now in range(6):
        verdict = follow(-9, deaths, float(now), told=False)
        pauses.append(verdict.pause_s)
        deaths.append(float(now))
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 0.0]
    assert verdict.status == 137
    assert "the 6th to die" in verdict.reason
    assert follow(-9, deaths, 1000.0, told=False).status is None  # that was long ago
    assert follow(EXIT_SUPERSEDED, deaths, 6.0, told=False).status is None


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_next_head_waits_for_its_turn_and_its_status_counts():
    said: list[bool] = []

    def command(again: bool) -> list[str]:
        said.append(again)
        kill = "import os; os.kill(os.getpid(), 9)"
        return script("import sys; sys.exit(3)" if again else kill)

    assert Supervisor(command).run() == 3
    assert said == [False, True]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_and_handlers_put_back(number, tmp_path: Path):
    ready = tmp_path / "ready"
    text = f"""
import pathlib, signal, sys, time
signal.signal({int(number)}, lambda *_: sys.exit(40))
pathlib.Path({str(ready)!r}).touch()
time.sleep(20)
"""

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send, daemon=True).start()
    assert Supervisor(lambda again: script(text)).run() == 40
    assert signal.getsignal(number) is before


def test_a_head_that_cannot_be_started_is_one_error():
    with pytest.raises(ClusterError, match="the head cannot be started: .*No such file"):
        Supervisor(lambda again: ["/nowhere/python"]).run()


def test_command_lines(tmp_path: Path):
    first = head_command(tmp_path, False)
    assert first == [sys.executable, "-m", "tarragon_hpc.cli", "head", str(tmp_path), "--child"]
    assert head_command(tmp_path, True) == [*first, "--standby", "--patience", "0"]


def test_it_stays_small():
    """It is there as long as the job is, on a node whose memory belongs to the workers."""
    text = "import sys, tarragon_hpc.cli.head; print(*sorted(sys.modules))"
    done = subprocess.run(script(text), capture_output=True, text=True, check=True)
    heavy = {"asyncio", "pydantic", "typer", "numpy", "msgspec", "uvicorn"}
    assert heavy.isdisjoint(done.stdout.split())
