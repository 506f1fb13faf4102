"""A run on Slurm as it is seen from outside: its head's answer, or what its jobs say instead.

Adds to what `query_status` returns: "jobs" (a list, see `job_lines`), "job_log" (what the heads'
jobs print), "tunnel" (the ssh line, while there is an endpoint).
"""

from __future__ import annotations

import getpass
import math
import socket
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.rendezvous import CONFIG, LOGS, known_head
from tarragon_hpc.cluster.slurm.jobs import jobs_of
from tarragon_hpc.cluster.slurm.script import HEAD_LOG
from tarragon_hpc.cluster.slurm.standing import DEAD, HEADLESS, standing
from tarragon_hpc.cluster.slurm.watch import QueueWatch
from tarragon_hpc.cluster.tunnel import tunnel
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.records import HeadRecord
    from tarragon_hpc.cluster.slurm.jobs import Job
    from tarragon_hpc.cluster.slurm.standing import Standing
    from tarragon_hpc.cluster.slurm.watch import Look

UNREACHABLE = "unreachable"
HANDED_OVER = "handed over"


def is_slurm(run_dir: Path) -> bool:
    """Whether a run lives in jobs of Slurm."""
    return bool(jobs_of(run_dir)) or load_config(run_dir / CONFIG).cluster.backend == "slurm"


def queue_watch(run_dir: Path) -> QueueWatch:
    """Looks at the queue as often as the run's configuration says."""
    return QueueWatch(load_config(run_dir / CONFIG).cluster.slurm.poll_s)


async def slurm_status(run_dir: Path, watch: QueueWatch, *, fresh: bool = False) -> dict[str, Any]:
    """The run; never raises because the head or Slurm is silent: "state" and "reason" say so."""
    jobs = jobs_of(run_dir)
    look = await watch.look([job.job for job in jobs], fresh=fresh)
    record = known_head(run_dir)
    status: dict[str, Any] = _nothing(run_dir.name)
    if record is not None:
        try:
            status = await query_status(run_dir)
        except ClusterError as error:
            status |= {"state": UNREACHABLE, "reason": str(error)}
    status |= without_head(status, standing(jobs, look, headed=record is not None))
    status["jobs"] = job_lines(jobs, look)
    status["job_log"] = str(job_log(run_dir))
    if record is not None and status["endpoint"]:
        status["tunnel"] = tunnel(status["endpoint"], record.host, _login(), here=_here(record))
    return status


def without_head(status: Mapping[str, Any], found: Standing) -> dict[str, str]:
    """What is to be said instead of what is known from heads that are gone. Pure."""
    resume = f"`tarragon resume {status['run']}` goes on with it"
    jobs_say = {"state": found.state, "reason": found.reason}
    if found.state == DEAD:
        jobs_say["reason"] += f"; {resume}"
    match status["state"]:
        case None | "dead":
            return jobs_say
        case "unreachable" if found.over:
            return jobs_say
        case "ended" if status.get("handover"):
            why = f"{status['reason']}; it was handed over"
            if found.over:
                return {"state": "ended", "reason": f"{why}, and no job is left: {resume}"}
            if found.state == HEADLESS:
                return {"state": HANDED_OVER, "reason": f"{why}; its job is about to end"}
            return jobs_say
    return {}


def job_lines(jobs: Sequence[Job], look: Look) -> list[dict[str, Any]]:
    """Every job for `status --json`. state: Slurm's word; "" if unknown, "forgotten" if it is not
    in the queue any more. over: it will never run again.
    """
    return [
        {
            "job": job.job,
            "kind": job.kind,
            "number": job.number,
            "worker": f"{job.worker}.{job.incarnation}" if job.worker else "",
            "submitted": job.submitted,
            **_seen(job, look),
        }
        for job in jobs
    ]


def job_log(run_dir: Path) -> Path:
    """What the batch processes of the heads' jobs have written."""
    return run_dir / LOGS / HEAD_LOG


def _seen(job: Job, look: Look) -> dict[str, Any]:
    view = look.views.get(job.job)
    if view is None:
        gone = job.job in look.missing
        return {
            "state": "forgotten" if gone else "", "over": gone,
            "reason": "" if gone else look.error, "expected_start": "", "left_s": None, "nodes": [],
        }  # fmt: skip
    left = view.left_s if view.left_s is not None and math.isfinite(view.left_s) else None
    return {
        "state": view.state,
        "over": view.over,
        "reason": view.reason,
        "expected_start": view.expected_start,
        "left_s": None if view.over or view.waits else left,
        "nodes": list(view.nodes),
    }


def _nothing(run: str) -> dict[str, Any]:
    """A run of which no head has told anything, in the form that a head's answer has."""
    return {
        "run": run, "state": None, "reason": "", "endpoint": None, "epoch": 0, "workers": [],
        "failures": [],
    }  # fmt: skip


def _here(record: HeadRecord) -> bool:
    return record.host == socket.gethostname()


def _login() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
