"""`tarragon stop`: end a run, and give back whatever it holds of a cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cli.runs import locate
from tarragon_hpc.cluster.client import stop_run
from tarragon_hpc.cluster.rendezvous import CONFIG
from tarragon_hpc.cluster.slurm.sight import is_slurm
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def stop(run: str | None, root: Path | None, drain_s: float | None, *, kill: bool) -> None:
    """End a run in good order and wait for it; kill: cancel its jobs, whatever its head says."""
    directory = locate(run, root)
    if drain_s is None:
        drain_s = load_config(directory / CONFIG).cluster.drain_timeout_s
    if is_slurm(directory):
        from tarragon_hpc.cluster.slurm.ending import end_run

        told = asyncio.run(end_run(directory, drain_s, kill=kill))
    elif kill:
        raise UserError("--kill: is for runs on Slurm; a local run ends with its head")
    else:
        told = "stopped" if asyncio.run(stop_run(directory, drain_s)) else "had ended before"
    print(f"{directory.name}: {told}")
