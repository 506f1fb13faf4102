"""`tarragon head RUN`: the head of a run whose directory is there already (a job's batch process).

run_head(run_dir)   submitit pickles it by name; `slurm/head.sbatch` calls the command
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tarragon_hpc.cli.head_work import answer_requests
from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.rendezvous import CONFIG
from tarragon_hpc.cluster.work import read_work
from tarragon_hpc.config import load_config
from tarragon_hpc.observe.log import configure


def run_head(run_dir: str) -> int:
    """Be the head of a run to its end; returns the exit status. Raises TarragonError."""
    path = Path(run_dir)
    configure("head")
    work = read_work(path)
    if work.kind == "generate":
        return answer_requests(path, work)
    config = load_config(path / CONFIG)
    return asyncio.run(run_service(config, run=path, on_ready=_announce, stop=asyncio.Event()))


def _announce(info: RunInfo) -> None:
    print(f"ready: {info.endpoint}", flush=True)
