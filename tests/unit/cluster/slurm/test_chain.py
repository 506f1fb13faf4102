"""Which job follows which, and which are cancelled in the end."""

from __future__ import annotations

import asyncio
import json

import pytest

from tarragon_hpc.cluster.slurm import chain
from tarragon_hpc.cluster.slurm.chain import (
    Chain,
    Link,
    Nobody,
    later,
    next_link,
    number_of,
    until_now,
)
from tarragon_hpc.cluster.slurm.jobs import HEAD, WORKER, Job, record
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.observe.timeline import Timeline


def job(name: str, number: int, kind: str = HEAD) -> Job:
    return Job(name, kind, float(number), number)


FIRST, SECOND, THIRD = job("7", 1), job("9", 2), job("12", 3)


def test_a_job_has_the_next_number_behind_it():
    assert next_link([FIRST], "7", 100) == Link(2, "7")
    assert next_link([FIRST, SECOND], "9", 100) == Link(3, "9")


def test_a_head_that_follows_in_the_same_job_submits_no_second_one():
    assert next_link([FIRST, SECOND], "7", 100) == "job 9 is the successor"
    assert next_link([FIRST, job("8", 1, WORKER)], "7", 100) == Link(2, "7")


def test_a_chain_has_an_end():
    assert next_link([FIRST, SECOND], "9", 3) == Link(3, "9")
    words = next_link([FIRST, SECOND, THIRD], "12", 3)
    assert words == "this is job 3 of a chain, and max_chain is 3: it is the last one"


def test_a_job_that_nobody_recorded_comes_after_all_others():
    assert number_of([], "1") == 1
    assert number_of([FIRST, SECOND], "30") == 3
    assert later([FIRST, SECOND], "30") == []


def test_only_later_heads_are_cancelled():
    jobs = [FIRST, job("8", 1, WORKER), SECOND, THIRD]
    assert [j.job for j in later(jobs, "9")] == ["12"]
    assert [j.job for j in later(jobs, "7")] == ["9", "12"]
    assert until_now(jobs, "9") == ["7", "9"]


def test_a_head_outside_of_any_job_is_for_the_newest_one(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert chain.own_job(tmp_path) == ""
    for known in (FIRST, SECOND):
        record(tmp_path, known)
    assert chain.own_job(tmp_path) == "9"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert chain.own_job(tmp_path) == "7"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, refused as often as it is told to, and scancel."""

    class Slurm:
        refusals = 0
        cancelled: tuple[str, ...] = ()
        submitted = 0

        def submit_head(self, config, run_dir, *, number, after):
            if self.refusals:
                self.refusals -= 1
                raise ClusterError("sbatch: too many jobs")
            self.submitted += 1
            record(run_dir, job("9", number))
            return job("9", number)

        def cancel(self, *jobs):
            self.cancelled += jobs

    slurm = Slurm()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(chain, "_RETRY_S", 0.01)
    monkeypatch.setattr(chain, "submit_head", slurm.submit_head)
    monkeypatch.setattr(chain, "cancel", slurm.cancel)
    record(tmp_path, FIRST)
    return slurm


def follow(run_dir, *, over: bool) -> list[str]:
    """A head from its start to its end; what its timeline says."""
    config = load_config({"model": {"path": "m"}, "cluster": {"backend": "slurm"}})
    timeline = Timeline(run_dir / "timeline.jsonl")

    async def live() -> None:
        link = Chain(config, run_dir, timeline)
        link.begin()
        await asyncio.sleep(0.1)
        await link.close(over=over)

    asyncio.run(live())
    timeline.close()
    lines = (run_dir / "timeline.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_a_run_that_is_handed_over_keeps_its_successor(tmp_path, slurm):
    assert follow(tmp_path, over=False) == ["successor submitted"]
    assert slurm.cancelled == ()
    follow(tmp_path, over=False)
    assert slurm.submitted == 1


def test_a_run_that_is_over_cancels_it(tmp_path, slurm):
    follow(tmp_path, over=True)
    assert slurm.cancelled == ("9",)


def test_a_refusal_is_told_once_and_tried_again(tmp_path, slurm):
    slurm.refusals = 3
    assert follow(tmp_path, over=False) == ["successor refused", "successor submitted"]


def test_only_a_chain_has_successors(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    timeline = Timeline(tmp_path / "timeline.jsonl")
    for backend, wish, kind in (
        ("slurm", "chain", Chain),
        ("slurm", "stop", Nobody),
        ("local", "chain", Nobody),
    ):
        cluster = {"backend": backend, "slurm": {"on_timelimit": wish}}
        config = load_config({"model": {"path": "m"}, "cluster": cluster})
        assert isinstance(chain.successor_of(config, tmp_path, timeline), kind)
    timeline.close()
