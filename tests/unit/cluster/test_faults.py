"""Who is hit, and that a signal hits only them."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tarragon_hpc.cluster.fault_plan import PlannedFault, draw_fault, plan_faults
from tarragon_hpc.cluster.faults import (
    Target,
    Victim,
    duty_cycle,
    find_target,
    serving_targets,
)
from tarragon_hpc.errors import UserError


def worker(name, state="serving", pid=7, host="here", **more):
    return {
        "id": name, "role": name[:2], "state": state, "incarnation": 2, "pid": pid, "host": host,
        **more,
    }  # fmt: skip


def status(*workers, state="serving", reason=""):
    return {"run": "r-1", "state": state, "reason": reason, "workers": workers}


def test_a_worker_is_found():
    assert find_target(status(worker("ew0")), "ew0", "here") == Target("ew0", 2, 7)
    silent = status(worker("ew0", "unresponsive"), state="degraded")
    assert str(find_target(silent, "ew0", "here")) == "ew0.2"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (status(worker("aw0"), worker("ew1")), "WORKER: 'ew0' is not one of aw0, ew1"),
        (status(worker("ew0", "planned", None)), "WORKER: ew0 is not running: it is planned"),
        (
            status(worker("ew0", "dead", reason="gone", exit="killed by SIGKILL")),
            r"ew0 is not running: it is dead \(killed by SIGKILL\)",
        ),
        (status(worker("ew0", host="there")), "ew0 runs on there; only those of this host, here"),
        (
            status(worker("ew0"), state="starting", reason="waiting for aw0"),
            r"RUN: r-1 is starting, not serving \(waiting for aw0\)",
        ),
    ],
)
def test_why_a_worker_cannot_be_hit(found, message):
    with pytest.raises(UserError, match=message):
        find_target(found, "ew0", "here")


def test_only_serving_workers_of_this_host_are_chosen_from():
    found = status(
        worker("aw0"), worker("ew0"), worker("ew1", "loading"), worker("ew2", host="there"),
        worker("ew3"),
    )  # fmt: skip
    assert [t.worker for t in serving_targets(found, ("ew",), "here")] == ["ew0", "ew3"]


def test_the_plan_is_the_seeds_and_longer_ones_only_add():
    kinds = ("kill", "stop", "slow")
    short = list(plan_faults(5, 2.0, kinds, 20.0))
    long = list(plan_faults(5, 2.0, kinds, 4000.0))
    assert long[: len(short)] == short
    assert list(plan_faults(6, 2.0, kinds, 20.0)) != short
    gaps = [b.at_s - a.at_s for a, b in zip(long, long[1:], strict=False)]
    assert min(gaps) > 0
    assert 1.8 < sum(gaps) / len(gaps) < 2.2
    assert {p.fault for p in long} == set(kinds)
    assert list(plan_faults(5, 2.0, kinds, 0.0)) == []


def test_stops_end_sometimes_slowdowns_always_kills_have_no_length():
    rng = random.Random(1)
    stops = [draw_fault(rng, 0.0, ("stop",)).lasts_s for _ in range(400)]
    for_good = stops.count(None) / len(stops)
    assert 0.15 < for_good < 0.35
    assert all(s is None or 0 < s <= 3 for s in stops)
    assert all(draw_fault(rng, 0.0, ("slow",)).lasts_s for _ in range(50))
    assert all(draw_fault(rng, 0.0, ("cut", "silence")).lasts_s for _ in range(50))
    assert draw_fault(rng, 0.0, ("kill",)).lasts_s is None


def test_every_candidate_can_be_chosen():
    chosen = {PlannedFault(0.0, "kill", draw / 10).choose("abc") for draw in range(10)}
    assert chosen == set("abc")


@pytest.mark.parametrize("factor", [1.5, 10, 200])
def test_a_slow_process_has_its_share(factor):
    run_s, stop_s = duty_cycle(factor)
    assert run_s / (run_s + stop_s) == pytest.approx(1 / factor)
    assert run_s >= 0.0005


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as running:
        yield running
        running.kill()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_stop_cont_and_kill(process):
    with Victim(Target("ew0", 1, process.pid)) as victim:
        assert victim.signal("stop")
        wait_for(lambda: state_of(process.pid) == "T")
        assert victim.signal("cont")
        wait_for(lambda: state_of(process.pid) != "T")
        assert victim.signal("kill")
        process.wait()
        assert not victim.signal("cont")
        victim.slow(10, 1.0, threading.Event())


def test_a_slow_process_is_slow_and_runs_afterwards(process):
    with Victim(Target("ew0", 1, process.pid)) as victim:
        wait_for(lambda: cpu_seconds(process.pid) > 0.1)
        before = cpu_seconds(process.pid)
        victim.slow(20, 0.6, threading.Event())
        assert cpu_seconds(process.pid) - before < 0.3
        wait_for(lambda: state_of(process.pid) != "T")


def test_a_slowdown_that_is_given_up_leaves_the_process_running(process):
    give_up = threading.Event()
    give_up.set()
    with Victim(Target("ew0", 1, process.pid)) as victim:
        victim.slow(1000, 60, give_up)
        wait_for(lambda: state_of(process.pid) != "T")


def test_nobody_is_nobody(process):
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        Victim(Target("ew0", 1, process.pid))
