from __future__ import annotations

from tarragon_hpc.cluster.slurm.ending import successors, to_cancel
from tarragon_hpc.cluster.slurm.queue import JobView
from tests.unit.cluster.slurm.looks import EXTRA, FIRST, SECOND, seen

RUNNING = JobView("11", "RUNNING")
NEXT = JobView("12", "PENDING", "Dependency")
JOBS = [FIRST, SECOND, EXTRA]


def test_what_may_still_run_is_cancelled():
    assert to_cancel(JOBS, seen(RUNNING, NEXT, JobView("13", "RUNNING"))) == ["11", "12", "13"]
    assert to_cancel(JOBS, seen(JobView("11", "COMPLETED"), NEXT, missing="13")) == ["12"]
    # Nothing is known of 13: better once too often.
    assert to_cancel(JOBS, seen(JobView("11", "FAILED"), missing="12")) == ["13"]
    assert to_cancel([], seen()) == []


def test_successors_go_first():
    assert successors(JOBS, seen(RUNNING, NEXT, JobView("13", "PENDING"))) == ["12"]
    # Nothing runs: the job that waits is the run's own.
    assert successors(JOBS, seen(JobView("11", "TIMEOUT"), NEXT)) == []
    assert successors([FIRST], seen(JobView("11", "PENDING"))) == []
