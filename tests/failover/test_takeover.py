"""The head dies, is stopped or superseded, and the workers do not notice; with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tarragon_hpc.cluster.client import query_status, stop_run
from tarragon_hpc.cluster.rendezvous import create_run, read_head
from tarragon_hpc.cluster.tenure import EXIT_SUPERSEDED
from tarragon_hpc.errors import TarragonError
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_chronicle
from tarragon_hpc.orchestrator.state import RunPhase
from tarragon_hpc.wire.link import EXIT_FENCED, EXIT_HEAD_LOST

HERE = Path(__file__).parent


class Heads:
    """A run on "Slurm", and the processes that are or were its heads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *more: str, fault: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, HERE / "detached_head.py", self.run_dir, HERE / "fake_worker.py"]
        with (self.run_dir / "logs" / "heads.log").open("ab") as output:
            process = subprocess.Popen(
                [*map(str, command), fault, *more], stdout=output, stderr=output, text=True
            )
        self.processes.append(process)
        return process

    def status(self) -> dict[str, Any]:
        try:
            return asyncio.run(query_status(self.run_dir))
        except TarragonError:
            return {"state": "none", "head": 0, "workers": []}

    def until(self, condition, limit_s: float = 60) -> dict[str, Any]:
        """The first status that fulfils a condition."""
        deadline = time.monotonic() + limit_s
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, f"{status}\n{self.log()}"
            time.sleep(0.02)
        return status

    def serving(self, head: int) -> dict[str, Any]:
        return self.until(lambda s: s["state"] == "serving" and s["head"] == head)

    def log(self) -> str:
        return (self.run_dir / "logs" / "heads.log").read_text()

    def starts(self) -> list[str]:
        return (self.run_dir / "starts.txt").read_text().split()

    def stray(self, worker: str, incarnation: int) -> int:
        """Start a worker that no head waits for; its exit status."""
        command = [sys.executable, HERE / "fake_worker.py", "", "--worker", worker]
        command += ["--incarnation", incarnation, "--run-dir", self.run_dir]
        with (self.run_dir / "logs" / "stray.log").open("ab") as output:
            done = subprocess.run(list(map(str, command)), stdout=output, stderr=output, timeout=60)
        return done.returncode

    def state(self):
        return replay(entry.event for entry in read_chronicle(self.run_dir).entries)

    def stop(self) -> None:
        assert asyncio.run(stop_run(self.run_dir, 5.0))
        wait_gone(pids(self.status()))

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for worker in self.status()["workers"]:
            if worker["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)


def pids(status: dict[str, Any]) -> dict[str, int]:
    return {w["id"]: w["pid"] for w in status["workers"]}


def wait_gone(processes: dict[str, int], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while alive := [w for w, pid in processes.items() if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


@pytest.fixture
def heads(make_config, tmp_path):
    made = []

    def make(**sections: dict[str, Any]) -> Heads:
        given = {
            "cluster": {
                "backend": "slurm",
                "head_lease_s": 60,
                "start_timeout_s": 60,
                "slurm": {"standby_head": False},
            },
            "transport": {"interface": "lo"},
            "checkpoint": {"stores": 1},
        }
        for section, keys in sections.items():
            given[section] = given.get(section, {}) | keys
        run_dir = create_run(make_config(**given), tmp_path / f"run{len(made)}")
        made.append(Heads(run_dir))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_next_head_adopts_the_workers_of_a_killed_one(heads):
    """Nobody is started again, the state is the journal's, and the run ends in good order."""
    run = heads()
    first = run.start()
    before = run.serving(1)
    first.kill()
    first.wait()
    assert run.status()["state"] == "dead"
    assert {w["state"] for w in run.status()["workers"]} == {"awaited"}
    second = run.start()
    # From the moment that it listens: the workers find it within a second or so.
    run.until(lambda s: s["state"] != "dead")
    listens = time.monotonic()
    after = run.serving(2)
    assert time.monotonic() - listens < 10  # alone on the machine: 1
    assert pids(after) == pids(before)
    assert [w["incarnation"] for w in after["workers"]] == [1] * 5
    assert [w["holds"] for w in after["workers"] if w["id"] == "ew1"] == [[1, 3, 5, 7]]
    assert after["epoch"] == 1
    assert len(run.starts()) == 5
    body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 3}
    answer = httpx.post(f"{after['endpoint']}/completions", json=body, timeout=20)
    assert answer.json()["usage"]["completion_tokens"] == 3
    run.until(lambda s: all(w["stats"] for w in s["workers"]))
    # A death is healed as ever, by an incarnation that is surely new.
    os.kill(pids(after)["ew1"], signal.SIGKILL)
    run.until(lambda s: s["state"] == "serving" and s["workers"][3]["incarnation"] == 3)
    assert run.stray("ew1", 2) == EXIT_FENCED
    run.stop()
    assert second.wait(20) == 0
    assert run.state().phase is RunPhase.ENDED
    assert run.start().wait(30) == 0  # it has ended for good
    assert len(run.starts()) == 6


def test_a_stopped_head_is_replaced_and_leaves_when_it_goes_on(heads):
    run = heads()
    first = run.start()
    before = run.serving(1)
    first.send_signal(signal.SIGSTOP)
    run.start()
    after = run.serving(2)
    assert pids(after) == pids(before)
    first.send_signal(signal.SIGCONT)
    assert first.wait(10) == EXIT_SUPERSEDED
    time.sleep(1)
    assert pids(run.serving(2)) == pids(before)
    assert len(run.starts()) == 5
    assert run.state().stale == 0
    run.stop()


def test_workers_that_were_starting_find_the_next_head(heads):
    """Killed as soon as something runs: the next one ends up with one of each, all serving."""
    run = heads()
    first = run.start()
    deadline = time.monotonic() + 30
    while not (run.run_dir / "starts.txt").exists() or len(run.starts()) < 3:
        assert time.monotonic() < deadline, run.log()
        time.sleep(0.001)
    first.kill()
    first.wait()
    run.start()
    run.serving(2)
    live = {w.worker: w.incarnation for w in run.state().workers.values()}
    assert set(live) == {"aw0", "aw1", "ew0", "ew1", "cs0"}
    assert len(set(run.starts())) == len(run.starts())
    run.stop()


def test_of_two_standbys_one_follows(heads):
    run = heads()
    first = run.start()
    before = run.serving(1)
    standbys = [run.start("--standby", "0.5") for _ in range(2)]
    run.until(lambda s: run.log().count("waits for the end of the head") == 2)
    time.sleep(1)
    first.kill()
    after = run.serving(2)
    assert pids(after) == pids(before)
    winner = read_head(run.run_dir).pid
    assert winner in [p.pid for p in standbys]
    (other,) = [p for p in standbys if p.pid != winner]
    time.sleep(1.5)
    assert other.poll() is None
    assert run.status()["head"] == 2
    run.stop()
    assert other.wait(20) == 0  # the run has ended: nothing to follow
    assert re.findall(r"as head (\d+)", run.log()) == ["2"]


def test_the_batch_process_starts_the_next_head_and_passes_signals_on(heads):
    run = heads()
    batch = run.start("--supervise")
    before = run.serving(1)
    os.kill(read_head(run.run_dir).pid, signal.SIGKILL)
    after = run.serving(2)
    assert pids(after) == pids(before)
    # Somebody takes the run away by force: the batch process waits, and takes it back.
    third = run.start()
    run.serving(3)
    run.until(lambda s: run.log().count("waits for the end of the head") == 2)
    third.kill()
    assert pids(run.serving(4)) == pids(before)
    batch.send_signal(signal.SIGINT)
    assert batch.wait(30) == 0
    assert run.state().phase is RunPhase.ENDED
    wait_gone(pids(before))


def test_workers_leave_when_nobody_comes(heads):
    run = heads(cluster={"head_lease_s": 1.5})
    first = run.start()
    before = run.serving(1)
    first.kill()
    first.wait()
    killed = time.monotonic()
    wait_gone(pids(before))
    assert 1.4 < time.monotonic() - killed < 10
    assert "no other head within 1.5 s; exiting" in (run.run_dir / "logs/aw0.1.log").read_text()
    # The next one finds nobody, and fills all places again.
    run.start()
    after = run.serving(2)
    assert not set(pids(after).values()) & set(pids(before).values())
    assert {w["before"] for w in after["workers"]} <= {
        "killed by SIGKILL",
        "did not come to head 2 within 1.5 s",
        f"exit status {EXIT_HEAD_LOST} (it lost the head)",
    }
    run.stop()


def test_a_handed_over_run_is_continued_with_all_places_filled_anew(heads):
    run = heads()
    first = run.start()
    before = run.serving(1)
    first.send_signal(signal.SIGUSR2)
    assert first.wait(30) == 0
    wait_gone(pids(before))
    state = run.state()
    assert (state.phase, state.handover) == (RunPhase.ENDED, True)
    run.start()
    after = run.serving(2)
    assert [w["restarts"] for w in after["workers"]] == [0] * 5
    assert {w["incarnation"] for w in after["workers"]} == {3}
    assert after["epoch"] == 2
    run.stop()
