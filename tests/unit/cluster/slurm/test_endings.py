"""Slurm's words about the end of a step, as seen on Slurm 22.05, in ours."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.endings import classify
from tarragon_hpc.wire.link import EXIT_FENCED

CANCELLED = """srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-n1: error: *** STEP 1.4 ON n1 CANCELLED AT 2026-11-27T02:26:31 ***
srun: error: n1: task 0: Killed
"""
TIME_LIMIT = (
    "slurmstepd-n1: error: *** STEP 1.4 ON n1 CANCELLED AT 2026-11-27T02:26 DUE TO TIME LIMIT ***"
)


@pytest.mark.parametrize(
    ("returncode", "said", "cause"),
    [
        (137, "srun: error: n1: task 0: Killed\nsrun: Force Terminated StepId=1.5\n",
         "killed by SIGKILL"),
        (139, "srun: error: n1: task 0: Segmentation fault (core dumped)\n", "killed by SIGSEGV"),
        (9, "srun: error: n1: task 0: Exited with exit code 9\n", "exit status 9"),
        (EXIT_FENCED, f"srun: error: n1: task 0: Exited with exit code {EXIT_FENCED}\n",
         f"exit status {EXIT_FENCED} (it was fenced)"),
        (0, "", "ended with status 0"),
        (137, CANCELLED, "its step was cancelled"),
        (3, CANCELLED.replace("Killed", "Exited with exit code 3"), "exit status 3"),
        (137, TIME_LIMIT, "its step was cancelled (time limit)"),
    ],
)  # fmt: skip
def test_a_task_that_has_ended(returncode, said, cause):
    ending = classify(returncode, said, "n1")
    assert ending.cause == cause
    assert ending.began
    assert not ending.bad_node
    assert not ending.alive


def test_a_node_that_failed_though_srun_ends_with_0():
    ending = classify(
        0, "srun: error: Node failure on n3\nsrun: Force Terminated job step 1.2\n", "n3"
    )
    assert ending.cause == ending.bad_node == "node failure on n3"
    assert ending.alive


def test_a_lost_node_that_srun_says_nothing_about():
    ending = classify(1, "srun: error: Timed out waiting for job step to complete\n", "n3",
                      node_lost=True)  # fmt: skip
    assert ending.bad_node == "node n3 was lost"
    assert ending.alive


def test_an_srun_that_was_killed_says_nothing_of_its_task():
    ending = classify(-9, "", "n1")
    assert ending.cause == "its srun was killed by SIGKILL"
    assert ending.alive
    assert not ending.bad_node


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("srun: Job 1 step creation temporarily disabled, retrying (Requested nodes are busy)\n"
         "srun: error: Unable to create step for job 1: Requested nodes are busy\n",
         "could not be started on n1: Requested nodes are busy"),
        ("srun: error: Unable to create step for job 19: Requested node configuration is not"
         " available\n",
         "could not be started on n1: Requested node configuration is not available"),
        ("srun: error: Unable to confirm allocation for job 9: Invalid job id specified\n",
         "could not be started on n1: Invalid job id specified"),
        ("srun: error: n1: task 0: Exited with exit code 2\n"
         "slurmstepd-n1: error: execve(): /no/such: No such file or directory\n",
         "could not be started on n1: execve(): /no/such: No such file or directory"),
    ],
)  # fmt: skip
def test_what_could_not_be_started_is_not_the_nodes_fault(said, words):
    ending = classify(1, said, "n1")
    assert ending.cause == words
    assert not ending.began
    assert not ending.bad_node
    assert not ending.alive


def test_a_node_that_cannot_be_reached_is_bad():
    said = (
        "srun: error: Task launch for StepId=13.0 failed on node n1: Communication connection"
        " failure\nsrun: error: Application launch failed: Communication connection failure\n"
    )
    ending = classify(1, said, "n1")
    assert "Communication connection failure" in ending.bad_node
    assert not ending.began


def test_what_nobody_understands_is_told_as_it_is_and_may_be_alive():
    ending = classify(1, "srun: error: the moon is full\n", "n1")
    assert ending.cause == "srun: the moon is full"
    assert ending.alive
