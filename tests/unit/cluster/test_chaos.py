"""Faults are inflicted on the process that the run says it is, and written down."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.fault_plan import PlannedFault
from tarragon_hpc.errors import ClusterError, UserError


class FakeHead:
    """Answers with statuses in turn, the last one again and again; keeps the notes."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.notes = []
        self.deaf = False

    async def status(self):
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    async def note(self, event, worker, detail):
        if self.deaf:
            raise ClusterError("the head went away before it answered")
        self.notes.append((event, worker, detail))


def status(pid, *, incarnation=1, state="serving", run="serving"):
    entry = {
        "id": "ew0", "role": "ew", "state": state, "incarnation": incarnation, "pid": pid,
        "host": socket.gethostname(),
    }  # fmt: skip
    return {"run": "r", "state": run, "reason": "", "workers": [entry]}


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as running:
        yield running
        running.kill()


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "chaos.jsonl").read_text().splitlines()]


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_kill_is_recorded_and_noted(process, tmp_path):
    head, said = FakeHead(status(process.pid)), []

    async def scenario():
        chaos = Chaos(tmp_path, head, said.append, seed=3)
        async with chaos.aim("ew0") as victim:
            await chaos.strike(victim, "kill")
            assert process.wait(10) == -9
            await chaos.strike(victim, "stop")

    before = time.monotonic()
    asyncio.run(scenario())
    (record,) = records(tmp_path)
    assert before < record.pop("mono") < time.monotonic()
    assert abs(record.pop("time") - time.time()) < 60
    about = {"incarnation": 1, "pid": process.pid, "seed": 3}
    assert record == {"worker": "ew0", "fault": "kill", **about}
    ((event, worker, detail),) = head.notes
    assert (event, worker) == ("chaos: kill", "ew0")
    assert 0 <= detail.pop("ago_s") < 1
    assert detail == about
    assert said == [f"kill ew0.1 (pid {process.pid})", "ew0.1 has ended before the stop"]


@pytest.mark.parametrize(
    "then", [{"incarnation": 2}, {"pid": 1}, {"state": "dead"}], ids=lambda then: next(iter(then))
)
def test_nobody_is_hit_if_the_run_has_gone_on_meanwhile(process, tmp_path, then):
    head = FakeHead(status(process.pid), status(**({"pid": process.pid} | then)))

    async def scenario():
        async with Chaos(tmp_path, head, print).aim("ew0"):
            pytest.fail("it is another one")

    with pytest.raises(UserError, match=r"WORKER: ew0.1 \(pid \d+\) has just ended"):
        asyncio.run(scenario())
    assert process.poll() is None


@pytest.mark.parametrize("fault", ["stop", "slow"])
def test_what_is_interrupted_goes_on_running(process, tmp_path, fault):
    head = FakeHead(status(process.pid))

    async def scenario():
        chaos = Chaos(tmp_path, head, lambda _: None)
        async with chaos.aim("ew0") as victim:
            strike = asyncio.create_task(chaos.strike(victim, fault, factor=50, lasts_s=60))
            while not head.notes:
                await asyncio.sleep(0.001)
            strike.cancel()
            with pytest.raises(asyncio.CancelledError):
                await strike
        while state_of(process.pid) == "T":
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(scenario(), 10))


@pytest.mark.parametrize("fault", ["stop", "slow"])
def test_what_lasts_has_two_records(process, tmp_path, fault):
    head = FakeHead(status(process.pid))

    async def scenario():
        chaos = Chaos(tmp_path, head, lambda _: None)
        async with chaos.aim("ew0") as victim:
            await chaos.strike(victim, fault, lasts_s=0.05)

    asyncio.run(scenario())
    began, ended = records(tmp_path)
    assert (began["fault"], ended["fault"]) == (fault, "cont")
    assert ended["mono"] - began["mono"] >= 0.04
    assert began.get("factor") == (10.0 if fault == "slow" else None)


class FakeWires:
    def __init__(self):
        self.done = []

    def cut(self, host):
        self.done.append(("cut", host))

    def silence(self, host):
        self.done.append(("silence", host))

    def heal(self, host):
        self.done.append(("heal", host))


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_link_is_healed_even_if_that_is_interrupted(process, tmp_path, fault):
    head, wires = FakeHead(status(process.pid)), FakeWires()

    async def scenario():
        chaos = Chaos(tmp_path, head, lambda _: None, wires=wires)
        async with chaos.aim("ew0") as victim:
            await chaos.strike(victim, fault, lasts_s=0.05)
            assert wires.done == [(fault, "ew0"), ("heal", "ew0")]
            strike = asyncio.create_task(chaos.strike(victim, fault, lasts_s=60))
            while len(head.notes) < 3:
                await asyncio.sleep(0.001)
            strike.cancel()
            with pytest.raises(asyncio.CancelledError):
                await strike

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert wires.done == [(fault, "ew0"), ("heal", "ew0")] * 2
    began, ended, again = records(tmp_path)
    assert (began["fault"], ended["fault"], again["fault"]) == (fault, "heal", fault)
    assert (began["for_s"], process.poll()) == (0.05, None)


def test_workers_of_one_host_have_no_links(process, tmp_path):
    async def scenario():
        chaos = Chaos(tmp_path, FakeHead(status(process.pid)), lambda _: None)
        async with chaos.aim("ew0") as victim:
            await chaos.strike(victim, "cut", lasts_s=1.0)

    with pytest.raises(UserError, match="FAULT: cut: the workers of this run share a host"):
        asyncio.run(scenario())


def test_a_head_that_does_not_hear_of_it_changes_nothing(process, tmp_path):
    head, said = FakeHead(status(process.pid)), []
    head.deaf = True

    async def scenario():
        chaos = Chaos(tmp_path, head, said.append)
        async with chaos.aim("ew0") as victim:
            await chaos.strike(victim, "kill")

    asyncio.run(scenario())
    assert [r["fault"] for r in records(tmp_path)] == ["kill"]
    assert said[1].startswith("not in the timeline")


def test_a_rampage_hits_who_serves_and_ends_with_the_run(process, tmp_path):
    plan = [PlannedFault(0.0, "stop", 0.5, 0.01), PlannedFault(0.1, "kill", 0.5)]
    plan += [PlannedFault(0.2, "kill", 0.5), PlannedFault(0.3, "kill", 0.5)]
    head, said = FakeHead(status(process.pid)), []

    async def scenario():
        chaos = Chaos(tmp_path, head, said.append)
        watch = asyncio.create_task(asyncio.to_thread(process.wait))
        rampage = asyncio.create_task(chaos.rampage(plan, ["ew"]))
        await watch
        while "kill" not in [r["fault"] for r in records(tmp_path)]:
            await asyncio.sleep(0.001)
        head.statuses = [status(None, state="dead", run="degraded"), status(None, run="stopping")]
        return await rampage

    assert asyncio.run(scenario()) == 2
    assert [r["fault"] for r in records(tmp_path)] == ["stop", "cont", "kill"]
    assert said[-2:] == [
        "no kill: none of ew serves just now",
        "over: RUN: r is stopping, not serving",
    ]
