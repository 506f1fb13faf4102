"""`--wait` of serve, generate and endpoint: follow a run on Slurm, and leave it alone on Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.slurm.waiting import Goal, wait_for

if TYPE_CHECKING:
    from pathlib import Path

INTERRUPTED = 130


def wait(run_dir: Path, goal: Goal) -> dict[str, Any] | None:
    """The status of the run once it serves (or has ended); None: interrupted, which is told.

    News go to stderr. Raises UserError or ClusterError if the run will never get there.
    """
    try:
        return asyncio.run(wait_for(run_dir, goal, _tell))
    except KeyboardInterrupt:
        name = run_dir.name
        _tell(
            f"not waiting any longer; the run goes on: `tarragon status {name}` shows it,"
            f" `tarragon stop {name}` ends it"
        )
        return None


def wait_and_say(run_dir: Path, goal: Goal) -> int:
    """`wait`, then where it serves, on stdout; returns the exit status."""
    status = wait(run_dir, goal)
    if status is None:
        return INTERRUPTED
    if goal == "serving":
        print(f"ready: {status['endpoint']}", flush=True)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
