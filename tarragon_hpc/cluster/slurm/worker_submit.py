"""A job for one worker: into Slurm's queue, and out of it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.commands import SlurmError, acall, call
from tarragon_hpc.cluster.slurm.jobs import WORKER, Job
from tarragon_hpc.cluster.slurm.sbatch import keep, sbatch
from tarragon_hpc.cluster.slurm.script import job_name, worker_job

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.config import Config
    from tarragon_hpc.ids import Incarnation

_FIND = ("squeue", "--noheader", "--me", "--format=%i")

log = logging.getLogger(__name__)


def submit(
    config: Config,
    run_dir: Path,
    who: Incarnation,
    spec: WorkerSpec,
    *,
    exclude: Iterable[str],
    again: bool,
) -> str:
    """Submit a worker's job and keep it in mind; returns its id.

    again: it may have been submitted before, and only the answer was lost. Raises UserError or
    ClusterError.
    """
    command = [*spec.prefix, *spec.program, *spec.arguments(who, run_dir)]
    script = worker_job(config, who, run_dir, command, env=spec.env, exclude=exclude)
    found = call([*_FIND, f"--name={job_name(run_dir, who)}"]).split() if again else []
    job = found[0] if found else sbatch(script, config)
    known = Job(job, WORKER, time.time(), worker=who.worker, incarnation=who.number)
    keep(run_dir, known, script)
    return job


async def cancel(job: str) -> None:
    """Kill the batch process at once, then have Slurm end what is left, or take it out of the
    queue: on its own Slurm would give a worker that hangs half a minute more.
    """
    for flags in (["--batch", "--signal=KILL"], []):
        try:
            await acall(["scancel", *flags, job], limit_s=20)
        except SlurmError as error:
            log.debug("scancel %s: %s", job, error.words)
