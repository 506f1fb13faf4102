"""`--wait` of serve, generate and endpoint: follow a run on Slurm, and leave it alone on Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.slurm.jobs import HEAD, jobs_of
from tarragon_hpc.cluster.slurm.waiting import Goal, explain, wait_for
from tarragon_hpc.cluster.work import read_work
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.generate.final import NAMES

if TYPE_CHECKING:
    from pathlib import Path

INTERRUPTED = 130


def wait(run_dir: Path, goal: Goal) -> dict[str, Any] | None:
    """The status of the run once it serves (or has ended); None: interrupted, which is told.

    News go to stderr. Raises UserError or ClusterError if the run will never get there.
    """
    batch = read_work(run_dir).kind == "generate"
    try:
        return asyncio.run(
            wait_for(run_dir, goal, _tell, lambda _: not batch or report_of(run_dir) is not None)
        )
    except KeyboardInterrupt:
        name = run_dir.name
        _tell(
            f"not waiting any longer; the run goes on: `tarragon status {name}` shows it,"
            f" `tarragon stop {name}` ends it"
        )
        return None


def wait_and_say(run_dir: Path, goal: Goal) -> int:
    """`wait`, then where it serves or what the batch came to, on stdout; returns the exit status.

    0: as wanted. 1: some requests of the batch have no final result. Raises UserError or
    ClusterError.
    """
    status = wait(run_dir, goal)
    if status is None:
        return INTERRUPTED
    if goal == "serving":
        print(f"ready: {status['endpoint']}", flush=True)
        return 0
    if read_work(run_dir).kind != "generate":
        return 0
    report = report_of(run_dir)
    if report is None:
        why = f"{run_dir.name}: ended without a report"
        raise ClusterError(explain(run_dir, why))
    print((run_dir / NAMES[1]).read_text(encoding="utf-8"), end="", flush=True)
    return 0 if report["complete"] else 1


def report_of(run_dir: Path) -> dict[str, Any] | None:
    """What a batch came to; None: its newest head has not said so (yet)."""
    if NAMES[0] not in {path.name for path in run_dir.iterdir()}:
        return None
    report: dict[str, Any] = json.loads((run_dir / NAMES[0]).read_bytes())
    heads = [job.job for job in jobs_of(run_dir) if job.kind == HEAD]
    return report if heads[-1:] == report["jobs"][-1:] else None


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
