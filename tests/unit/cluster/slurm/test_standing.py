from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.queue import JobView
from tarragon_hpc.cluster.slurm.standing import in_words, standing, waits
from tarragon_hpc.cluster.slurm.watch import Look
from tests.unit.cluster.slurm.looks import EXTRA, FIRST, SECOND, seen

PENDING = JobView("11", "PENDING", "Resources", (), "2026-11-27T10:00:00")
RUNNING = JobView("11", "RUNNING", "", ("n0", "n1"), "", 60.0)
FAILED = JobView("11", "FAILED", "NonZeroExitCode", ("n0",))
CANCELLED = JobView("11", "CANCELLED", "Priority")
STOPPED = JobView("11", "CANCELLED", "", ("n0",))
NEXT = JobView("12", "PENDING", "Dependency")


def test_a_run_without_jobs():
    assert standing([], seen(), headed=False).state == "prepared"
    assert standing([EXTRA], seen(), headed=False).state == "prepared"


def test_a_job_that_waits_says_why_and_until_when():
    found = standing([FIRST], seen(PENDING), headed=False)
    assert found.state == "pending"
    assert found.reason == (
        "job 11 waits: Resources (the nodes it asks for are in use),"
        " expected to start 2026-11-27T10:00:00"
    )
    assert waits(JobView("9", "PENDING")) == "job 9 waits"


def test_a_running_job_is_awaited():
    found = standing([FIRST, EXTRA], seen(RUNNING), headed=False)
    assert (found.state, found.over) == ("starting", False)
    assert found.reason == "job 11 runs on n0,n1; its head is coming up"


def test_a_head_that_is_gone_leaves_its_job():
    found = standing([FIRST, SECOND], seen(RUNNING, NEXT), headed=True)
    assert (found.state, found.job) == ("headless", "11")
    assert "the next head takes over" in found.reason


def test_a_successor_that_waits_is_hope():
    done = JobView("11", "TIMEOUT", "TimeLimit")
    found = standing([FIRST, SECOND], seen(done, NEXT), headed=True)
    assert (found.state, found.job, found.over) == ("pending", "12", False)


@pytest.mark.parametrize(
    ("view", "headed", "state", "words"),
    [
        (CANCELLED, True, "cancelled", "job 11 ended: CANCELLED while it waited (Priority)"),
        (STOPPED, False, "cancelled", "job 11 ended: CANCELLED before it had a head"),
        (
            FAILED, False, "failed",
            "job 11 ended: FAILED, NonZeroExitCode (it ended with an error) before it had a head",
        ),
        (FAILED, True, "dead", "job 11 ended: FAILED, NonZeroExitCode (it ended with an error)"),
    ],
)  # fmt: skip
def test_the_end(view, headed, state, words):
    found = standing([FIRST], seen(view), headed=headed)
    assert (found.state, found.reason, found.over) == (state, words, True)


def test_a_job_that_slurm_has_forgotten_is_over():
    found = standing([FIRST], seen(missing="11"), headed=False)
    assert (found.state, found.over) == ("failed", True)
    assert found.reason == "job 11 is over before it had a head; Slurm does not know it any more"
    assert standing([FIRST], seen(missing="11"), headed=True).state == "dead"


def test_no_answer_is_no_end():
    found = standing([FIRST], seen(error="squeue: timed out"), headed=True)
    assert (found.state, found.over) == ("unknown", False)
    assert found.reason == "job 11: squeue: timed out"
    # One of them is known to be over, of the other nothing is known.
    found = standing([FIRST, SECOND], seen(FAILED, error="x"), headed=True)
    assert found.state == "unknown"
    assert standing([FIRST], Look(), headed=False).reason == "job 11: Slurm could not be asked"


def test_the_last_job_counts_at_the_end():
    end = JobView("12", "CANCELLED")
    found = standing([FIRST, SECOND], seen(FAILED, end), headed=True)
    assert (found.state, found.job) == ("cancelled", "12")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "Priority (other jobs come first)"),
        ("ReqNodeNotAvail, UnavailableNodes:n3",
         "ReqNodeNotAvail, UnavailableNodes:n3 (nodes that it needs are down, drained or"
         " reserved)"),
        ("SomethingNew", "SomethingNew"),
    ],
)  # fmt: skip
def test_reasons_in_words(reason, words):
    assert in_words(reason) == words
