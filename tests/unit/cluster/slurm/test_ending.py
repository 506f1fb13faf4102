from __future__ import annotations

from tarragon_hpc.cluster.slurm.ending import left, to_cancel
from tarragon_hpc.cluster.slurm.queue import JobView
from tests.unit.cluster.slurm.looks import EXTRA, FIRST, SECOND, seen

RUNNING = JobView("11", "RUNNING")
NEXT = JobView("12", "PENDING", "Dependency")
WORKER = JobView("13", "RUNNING")
JOBS = [FIRST, SECOND, EXTRA]


def names(jobs):
    return [job.job for job in jobs]


def test_what_may_still_run():
    assert names(left(JOBS, seen(RUNNING, NEXT, WORKER))) == ["11", "12", "13"]
    assert names(left(JOBS, seen(JobView("11", "COMPLETED"), NEXT, missing="13"))) == ["12"]
    # Nothing is known of 13: better once too often.
    assert names(left(JOBS, seen(JobView("11", "FAILED"), missing="12"))) == ["13"]
    assert left([], seen()) == []


def test_a_head_that_ends_is_given_time_and_nobody_else():
    look = seen(RUNNING, NEXT, WORKER)
    assert to_cancel(JOBS, look, patient=True) == ["12", "13"]
    assert to_cancel(JOBS, look, patient=False) == ["11", "12", "13"]
    ending = seen(JobView("11", "COMPLETING"), JobView("12", "CANCELLED"), missing="13")
    assert to_cancel(JOBS, ending, patient=False) == []
    assert names(left(JOBS, ending)) == ["11"]
    assert to_cancel(JOBS, seen(), patient=True) == ["11", "12", "13"]
