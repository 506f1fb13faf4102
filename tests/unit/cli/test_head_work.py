"""`generate` as a job: heads that are killed, or not dead at all; one result per request."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.cluster.work import Work, write_work
from tarragon_hpc.config import load_config

HEAD = Path(__file__).with_name("scripted_head.py")
PROMPTS = [f"prompt {i}" for i in range(60)]


class Batch:
    """A prepared run and its files."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "in.jsonl", folder / "out.jsonl"
        self.source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
        overrides = {"model": {"path": str(folder)}, "attention": {"max_num_seqs": 1}}
        self.run = create_run(load_config(overrides), folder / "run")
        write_work(self.run, Work("generate", str(self.source), f"file://{self.target}"))

    def head(self, delay_s: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, str(HEAD), str(self.run), str(delay_s)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def report(self):
        return json.loads((self.run / "report.json").read_text())

    def check(self) -> None:
        """Each request has one result, and the right one."""
        lines = [json.loads(line) for line in self.target.read_text().splitlines()]
        texts = {line["custom_id"]: line["response"]["body"]["text"] for line in lines}
        assert len(lines) == len(PROMPTS)
        assert texts == {str(n): prompt[::-1] for n, prompt in enumerate(PROMPTS, 1)}
        assert len({line["response"]["body"]["name"] for line in lines}) == len(PROMPTS)


@pytest.fixture
def batch(tmp_path):
    return Batch(tmp_path)


def some(process, count):
    """Until so many requests have been answered."""
    for _ in range(count):
        assert process.stdout.readline(), process.stderr.read()


def end(process):
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_head_answers_everything_and_reports(batch):
    assert end(batch.head())[0] == 0
    batch.check()
    report = batch.report()
    assert (report["complete"], report["answered"], report["tokens"]) == (True, 60, 120)
    assert (report["heads"], report["output"]) == (1, f"file://{batch.target}")
    assert "60: 60 answered" in (batch.run / "report.txt").read_text()


def test_a_head_that_is_killed_is_followed_by_one_that_does_the_rest(batch):
    for kills in range(3):
        head = batch.head(0.01)
        some(head, 12)
        head.send_signal(signal.SIGKILL)
        status, said = end(head)
        assert status == -signal.SIGKILL
        assert not batch.target.read_text() if batch.target.exists() else True
        assert kills == 0 or "of 60 requests are done already" in said
    status, said = end(batch.head())
    assert status == 0
    batch.check()
    assert batch.report()["heads"] == 4
    parts = [p.read_text().splitlines() for p in (batch.run / "results").glob("*.jsonl")]
    assert len(parts) == 4
    assert sum(map(len, parts)) in range(60, 65)  # a torn line, at most, of each that was killed


def test_near_the_time_limit_a_head_leaves_the_rest_to_the_next(batch):
    head = batch.head(0.01)
    some(head, 12)
    head.send_signal(signal.SIGUSR2)
    status, said = end(head)
    assert status == 0
    assert "the next head goes on with it" in said
    assert not (batch.run / "report.json").exists()
    assert end(batch.head())[0] == 0
    batch.check()
    assert batch.report()["heads"] == 2


def test_a_head_that_was_given_up_and_still_works_does_no_harm(batch):
    zombie = batch.head(0.02)
    some(zombie, 5)
    zombie.send_signal(signal.SIGSTOP)
    assert end(batch.head())[0] == 0
    batch.check()
    before = batch.target.read_bytes()
    zombie.send_signal(signal.SIGCONT)
    assert end(zombie)[0] == 0
    batch.check()
    assert batch.target.read_bytes() == before


def test_two_heads_at_a_time(batch):
    heads = [batch.head(0.005), batch.head(0.005), batch.head(0.005)]
    for head in heads:
        assert end(head)[0] == 0
    batch.check()


def test_a_head_that_finds_nothing_left_reports_and_ends(batch):
    assert end(batch.head())[0] == 0
    (batch.run / "report.json").unlink()
    status, said = end(batch.head())
    assert status == 0
    assert "60 of 60 requests are done already" in said
    assert batch.report()["complete"]
