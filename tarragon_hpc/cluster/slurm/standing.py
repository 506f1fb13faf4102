"""What its jobs say of a run whose head says nothing. Pure: records and a look at the queue in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.jobs import HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.cluster.slurm.jobs import Job
    from tarragon_hpc.cluster.slurm.queue import JobView
    from tarragon_hpc.cluster.slurm.watch import Look

PREPARED, UNKNOWN, PENDING, STARTING = "prepared", "unknown", "pending", "starting"
HEADLESS, CANCELLED, FAILED, DEAD = "headless", "cancelled", "failed", "dead"
OVER = (CANCELLED, FAILED, DEAD)

_HINTS = {
    "Resources": "the nodes it asks for are in use",
    "Priority": "other jobs come first",
    "Dependency": "it comes after another job",
    "PartitionTimeLimit": "cluster.slurm.time is more than the partition allows: it will not start",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: it will not start",
    "PartitionConfig": "it asks for more than the partition has: it will not start",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs now",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "BadConstraints": "no node fulfils cluster.slurm.*.constraint: it will not start",
    "InvalidAccount": "cluster.slurm.account is not known: it will not start",
    "InvalidQOS": "cluster.slurm.qos is not known: it will not start",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as cluster.slurm.qos allows",
    "AssocGrpGRES": "the account has as many GPUs as it may have",
    "JobHeldUser": "it is held: scontrol release JOB",
    "JobHeldAdmin": "it is held by an administrator",
    "launch failed requeued held": "it could not be launched and is held: scontrol release JOB",
    "DependencyNeverSatisfied": "what it comes after did not end as asked: it will not start",
    "JobLaunchFailure": "a node could not start it; is the run directory (run.root, --run-dir) on a"
    " filesystem that all nodes share?",
    "NonZeroExitCode": "it ended with an error",
    "TimeLimit": "it reached its time limit",
    "NodeFail": "a node failed",
    "RaisedSignal:9": "it was killed",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """state: a word for `tarragon status`. reason: a line. job: the one that it is about."""

    state: str
    reason: str
    job: str = ""

    @property
    def over(self) -> bool:
        """Nothing will come of the run by itself."""
        return self.state in OVER


def standing(jobs: Sequence[Job], look: Look, *, headed: bool) -> Standing:
    """Where a run is. headed: some head has been there, and does not answer any more."""
    heads = [job for job in jobs if job.kind == HEAD]
    if not heads:
        return Standing(PREPARED, "no job of it was submitted")
    views = [look.views[job.job] for job in heads if job.job in look.views]
    if running := [view for view in views if not view.waits and not view.over]:
        return _running(running[-1], headed=headed)
    if waiting := [view for view in views if view.waits]:
        return Standing(PENDING, waits(waiting[0]), waiting[0].job)
    unseen = [job for job in heads if job.job not in look.views]
    if any(job.job not in look.missing for job in unseen):
        why = look.error or "Slurm could not be asked"
        return Standing(UNKNOWN, f"job {unseen[-1].job}: {why}", unseen[-1].job)
    return _over(heads[-1].job, look.views.get(heads[-1].job), headed=headed)


def waits(view: JobView) -> str:
    """`job 12 waits: Priority (other jobs come first), expected to start 2026-11-27T10:00:00`."""
    start = f", expected to start {view.expected_start}" if view.expected_start else ""
    return f"job {view.job} waits{_because(view.reason)}{start}"


def ended(view: JobView) -> str:
    """`job 12 ended: FAILED, NonZeroExitCode (it ended with an error)`."""
    if view.state == "CANCELLED" and not view.nodes:
        # Slurm still gives the reason why it waited.
        waited = f" ({view.reason})" if view.reason else ""
        return f"job {view.job} ended: CANCELLED while it waited{waited}"
    reason = f", {in_words(view.reason)}" if view.reason else ""
    return f"job {view.job} ended: {view.state}{reason}"


def in_words(reason: str) -> str:
    """A reason of Slurm, and what it means where that is not plain."""
    # Some have a tail, as ReqNodeNotAvail, UnavailableNodes:n3.
    hint = _HINTS.get(reason) or _HINTS.get(reason.partition(",")[0])
    return f"{reason} ({hint})" if hint else reason


def _because(reason: str) -> str:
    return f": {in_words(reason)}" if reason else ""


def _running(view: JobView, *, headed: bool) -> Standing:
    where = f" on {','.join(view.nodes)}" if view.nodes else ""
    if headed:
        told = f"its head is gone; job {view.job} still runs{where}: the next head takes over"
        return Standing(HEADLESS, told, view.job)
    return Standing(STARTING, f"job {view.job} runs{where}; its head is coming up", view.job)


def _over(job: str, view: JobView | None, *, headed: bool) -> Standing:
    before = "" if headed else " before it had a head"
    if view is None:
        told = f"job {job} is over{before}; Slurm does not know it any more"
        return Standing(DEAD if headed else FAILED, told, job)
    state = CANCELLED if view.state == "CANCELLED" else DEAD if headed else FAILED
    return Standing(state, f"{ended(view)}{before}", job)
