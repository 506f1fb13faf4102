"""Looks at the queue, written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.jobs import HEAD, WORKER, Job
from tarragon_hpc.cluster.slurm.watch import Look

if TYPE_CHECKING:
    from tarragon_hpc.cluster.slurm.queue import JobView

FIRST = Job("11", HEAD, 100.0)
SECOND = Job("12", HEAD, 200.0, 2)
EXTRA = Job("13", WORKER, 300.0, worker="ew0", incarnation=2)


def seen(*views: JobView, missing: str = "", error: str = "") -> Look:
    return Look({view.job: view for view in views}, frozenset(missing.split()), error)
