"""What looks at the queue say of a worker's own job."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.job_ends import Stage, exit_words, judge
from tarragon_hpc.cluster.slurm.queue import parse
from tarragon_hpc.cluster.slurm.watch import Look


def seen(line: str, missed: int = 0, *, connected: bool = False):
    return judge("5", Look(parse(line)), missed, connected=connected)


def test_a_job_that_waits_says_why_and_until_when():
    verdict = seen("5|PENDING|1:00|2026-12-01T10:00:00||Resources")
    assert (verdict.stage, verdict.reason) == (Stage.WAITS, "Resources")
    assert verdict.expected_start == "2026-12-01T10:00:00"
    assert seen("5|PENDING|1:00|N/A||None").reason == "pending"
    assert seen("5|CONFIGURING|1:00|N/A|n3|None").reason == "configuring"


def test_a_job_that_runs_and_one_that_ends():
    assert seen("5|RUNNING|1:00|N/A|n3|None").stage is Stage.RUNS
    assert seen("5|COMPLETING|1:00|N/A|n3|None").stage is Stage.ENDING


def test_a_failed_look_says_nothing():
    look = Look({}, frozenset(), "squeue: Socket timed out")
    verdict = judge("5", look, 1, connected=False)
    assert (verdict.stage, verdict.missed) == (Stage.UNKNOWN, 1)


def test_an_unknown_id_is_an_end_only_the_second_time_and_without_its_worker():
    look = Look({}, frozenset({"5"}))
    first = judge("5", look, 0, connected=False)
    assert (first.stage, first.missed) == (Stage.UNKNOWN, 1)
    assert judge("5", look, 1, connected=False).stage is Stage.OVER
    there = judge("5", look, 1, connected=True)
    assert (there.stage, there.missed) == (Stage.UNKNOWN, 0)


@pytest.mark.parametrize(
    ("line", "reason", "blame"),
    [
        ("5|NODE_FAIL|0:00|N/A|n3|NodeDown", "its node failed (5)", ("n3",)),
        ("5|CANCELLED|0:00|N/A||None", "its job was cancelled (5)", ()),
        ("5|TIMEOUT|0:00|N/A|n3|TimeLimit", "its job was at its time limit (5)", ()),
        (
            "5|PENDING|0:00|N/A||launch failed requeued held",
            "its job 5 could not be launched: launch failed requeued held",
            (),
        ),
    ],
)
def test_ends(line, reason, blame):
    verdict = seen(line)
    assert (verdict.stage, verdict.reason, verdict.blame) == (Stage.OVER, reason, blame)
    assert not verdict.exit_unknown


def test_how_the_worker_itself_ended_is_asked_for():
    verdict = seen("5|FAILED|0:00|N/A|n3|NonZeroExitCode")
    assert (verdict.stage, verdict.reason, verdict.exit_unknown) == (
        Stage.OVER, "its job 5 failed", True,
    )  # fmt: skip
    assert exit_words("JobId=5 JobState=FAILED ExitCode=9:0 X=1") == "exit status 9"
    assert exit_words("JobId=5 ExitCode=0:9 DerivedExitCode=0:0") == "killed by SIGKILL"
    assert exit_words("JobId=5 DerivedExitCode=0:0") == ""
