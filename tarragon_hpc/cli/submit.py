"""`tarragon serve`, `generate` and `resume` on Slurm: submit, say what comes next, return."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tarragon_hpc.cli.head import run_head
from tarragon_hpc.cli.runs import locate
from tarragon_hpc.cli.waiting import wait_and_say
from tarragon_hpc.cluster.inheritance import final_state
from tarragon_hpc.cluster.rendezvous import CONFIG, open_run
from tarragon_hpc.cluster.root import local_path
from tarragon_hpc.cluster.slurm import queue
from tarragon_hpc.cluster.slurm.begin import begin
from tarragon_hpc.cluster.slurm.checks import check, prepared
from tarragon_hpc.cluster.slurm.commands import call
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, jobs_of
from tarragon_hpc.cluster.slurm.sbatch import submit_head
from tarragon_hpc.cluster.work import Work, read_work
from tarragon_hpc.config import RunConfig, load_config
from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.config import Config


def submit(config: Config, work: Work, run_dir: Path | None, *, wait: bool) -> int:
    """Submit a new run's job; returns the exit status. wait: follow it until it serves (a batch:
    until it is done).
    """
    path, job = begin(prepared(config), work, run_head, run_dir)
    return _submitted(path, job, work, wait=wait)


def resume(run: str | None, root: Path | None, *, wait: bool) -> int:
    """Submit a new head for a run that has no job any more; returns the exit status."""
    path = open_run(locate(run, root))
    config = load_config(path / CONFIG)
    if config.cluster.backend != "slurm":
        raise UserError(f"RUN: {path.name}: was not on Slurm; there is no job to submit for it")
    if (state := final_state(path)) is not None:
        raise UserError(f"RUN: {path.name}: has ended: {state.reason}; there is nothing to resume")
    check(config)
    jobs = [job for job in jobs_of(path) if job.kind == HEAD]
    views = queue.parse(call(queue.command(os.getuid())))
    for job in jobs:
        view = views.get(job.job)
        if view is not None and not view.over:
            raise UserError(f"RUN: {path.name}: its job {job.job} is there, {view.state}")
    number = max((job.number for job in jobs), default=0) + 1
    job = submit_head(config, path, number=number)
    return _submitted(path, job, read_work(path), wait=wait)


def _submitted(path: Path, job: Job, work: Work, *, wait: bool) -> int:
    name = path.name
    print(f"run {name}: job {job.job} submitted; its files are in {path}", flush=True)
    if wait:
        return wait_and_say(path, "serving" if work.kind == "serve" else "ended")
    usual = path.parent == local_path(RunConfig().root)
    print(f"next: tarragon status {name if usual else path} (or logs -f, endpoint --wait, stop)")
    return 0
