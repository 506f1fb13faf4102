"""Make a run and submit its job: both, or nothing is left of either."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.rendezvous import create_run
from tarragon_hpc.cluster.slurm.checks import check
from tarragon_hpc.cluster.slurm.sbatch import cancel, check_possible
from tarragon_hpc.cluster.slurm.submit import submit_run
from tarragon_hpc.cluster.work import Work, write_work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tarragon_hpc.cluster.slurm.jobs import Job
    from tarragon_hpc.config import Config


def begin(
    config: Config, work: Work, head: Callable[[str], int], run_dir: Path | None = None
) -> tuple[Path, Job]:
    """Check everything, make the run directory, submit `head`; returns the directory and the job.

    Raises UserError or ClusterError; then there is neither.
    """
    check(config)
    theirs = run_dir is not None and run_dir.expanduser().exists()
    path = create_run(config, run_dir)
    submitted = []
    try:
        write_work(path, work)
        job = submit_run(config, path, head)
        submitted.append(job.job)
        # Afterwards, since what is said against a submission says more.
        check_possible(config)
    except BaseException:
        if submitted:
            cancel(*submitted)
        discard(path, keep_folder=theirs)
        raise
    return path, job


def discard(run_dir: Path, *, keep_folder: bool) -> None:
    """Remove a run that did not begin; keep_folder: the (then empty) directory stays."""
    if not keep_folder:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for entry in run_dir.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
