"""One squeue for everybody; a failure and an unknown id are no end."""

from __future__ import annotations

import asyncio
import functools

import pytest

from tarragon_hpc.cluster.slurm import watch
from tarragon_hpc.cluster.slurm.commands import SlurmError
from tarragon_hpc.cluster.slurm.watch import QueueWatch


def in_a_loop(test):
    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class Squeue:
    """Answers with `text`, or fails with it as its words; counts."""

    def __init__(self, text: str = "") -> None:
        self.text, self.fails, self.calls = text, False, 0
        self.now = 100.0

    async def __call__(self) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        if self.fails:
            raise SlurmError("squeue", self.text)
        return self.text

    def clock(self) -> float:
        return self.now


@pytest.fixture
def squeue(monkeypatch):
    monkeypatch.setattr(watch, "_FRESH_S", 0.0)
    return Squeue("1|RUNNING|1:00|N/A|n1|None\n2|PENDING|1:00|N/A||Priority\n")


@in_a_loop
async def test_one_call_however_many_ask(squeue):
    look = QueueWatch(10, squeue, squeue.clock).look
    answers = await asyncio.gather(*(look(["1", "2"]) for _ in range(50)))
    assert squeue.calls == 1
    assert all(a.views["2"].reason == "Priority" for a in answers)
    squeue.now += 9
    await look(["1"])
    assert squeue.calls == 1
    squeue.now += 1
    await look(["1"])
    assert squeue.calls == 2


@in_a_loop
async def test_fresh_and_new_jobs_are_looked_for_at_once(squeue):
    queue = QueueWatch(10, squeue, squeue.clock)
    await queue.look(["1"])
    squeue.now += 1
    await queue.look(["1"], fresh=True)
    assert squeue.calls == 2
    squeue.now += 1
    assert (await queue.look(["3"])).missing == {"3"}
    assert squeue.calls == 3


@in_a_loop
async def test_a_failure_says_nothing_of_jobs(squeue):
    queue = QueueWatch(10, squeue, squeue.clock)
    await queue.look(["1"])
    squeue.now, squeue.fails, squeue.text = 120.0, True, "Unable to contact slurm controller"
    found = await queue.look(["1", "9"])
    assert found.views["1"].state == "RUNNING"
    assert found.missing == set()
    assert found.error == queue.error == "squeue: Unable to contact slurm controller"
    squeue.now, squeue.fails, squeue.text = 140.0, False, ""
    found = await queue.look(["1", "9"])
    assert (found.views, found.missing, found.error) == ({}, {"1", "9"}, "")


@in_a_loop
async def test_an_end_that_was_seen_is_remembered_after_slurm_forgot_it(squeue):
    queue = QueueWatch(10, squeue, squeue.clock)
    await queue.look(["1"])
    squeue.now, squeue.text = 120.0, "1|FAILED|0:00|N/A|n1|NonZeroExitCode\n"
    await queue.look(["1"])
    squeue.now, squeue.text = 140.0, ""
    found = await queue.look(["1"])
    assert found.views["1"].over
    assert found.missing == set()


@in_a_loop
async def test_a_crowd_of_the_curious_is_slowed_down(squeue, monkeypatch):
    monkeypatch.setattr(watch, "_FRESH_S", 0.2)
    queue = QueueWatch(10, squeue)
    for _ in range(3):
        await asyncio.gather(*(queue.look(["1"], fresh=True) for _ in range(5)))
    assert squeue.calls <= 5
