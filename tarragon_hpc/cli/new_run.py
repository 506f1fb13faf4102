"""`tarragon head --new CONFIG`: a job that was submitted by hand makes its own run and heads it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

import yaml

from tarragon_hpc.cli.head import run_head
from tarragon_hpc.cli.serve import read_config
from tarragon_hpc.cluster.rendezvous import LOGS, create_run
from tarragon_hpc.cluster.slurm.checks import check, prepared
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job, record
from tarragon_hpc.cluster.slurm.script import HEAD_LOG
from tarragon_hpc.cluster.work import Work, write_work
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.config import Config


def new_run(
    source: Path | None,
    overrides: Sequence[str],
    site: str | None,
    work: Work,
    run_dir: Path | None,
) -> int:
    """Make a run of this job, and be its head to the end; returns the exit status.

    source: the configuration's file; `-`: standard input. Raises TarragonError.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("head --new: is for a job of Slurm; submit it with sbatch")
    config = _read(source, overrides, site)
    if config.cluster.backend != "slurm":
        config = config.model_copy(
            update={"cluster": config.cluster.model_copy(update={"backend": "slurm"})}
        )
    config = prepared(config)
    check(config)
    path = create_run(config, run_dir)
    write_work(path, work)
    record(path, Job(job, HEAD, time.time()))
    _lend_log(path)
    print(f"run {path.name}: job {job}; its files are in {path}", flush=True)
    return run_head(str(path))


def _lend_log(run_dir: Path) -> None:
    """What this job prints is the log of the run's heads, wherever it is."""
    with contextlib.suppress(OSError):
        printed = os.readlink("/proc/self/fd/1")
        if os.path.isfile(printed):
            os.symlink(printed, run_dir / LOGS / HEAD_LOG)


def _read(source: Path | None, overrides: Sequence[str], site: str | None) -> Config:
    if str(source) != "-":
        return read_config(source, overrides, site)
    try:
        data = yaml.safe_load(sys.stdin.buffer)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError("CONFIG", "standard input is not valid YAML") from None
    if not isinstance(data, dict):
        raise ConfigError("CONFIG", "standard input must hold sections of a configuration")
    return load_config(data, overrides, site=site)
