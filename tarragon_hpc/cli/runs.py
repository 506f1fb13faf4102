"""`tarragon status`, `logs` and `stop`: look at a run that exists, and end it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.client import query_status, stop_run
from tarragon_hpc.cluster.rendezvous import CONFIG, find_run
from tarragon_hpc.config import RunConfig, load_config
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

_OVER = ("ended", "failed", "dead")
_WORKER = re.compile(r"(aw|ew|cs)\d+(\.\d+)?")


def locate(run: str | None, root: Path | None) -> Path:
    """The directory of the run that was named. Raises UserError."""
    return find_run(root or RunConfig().root, run)


def status(run: str | None, root: Path | None, *, as_json: bool) -> None:
    """Print what the run's head (or its journal) says."""
    found = asyncio.run(query_status(locate(run, root)))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    from tarragon_hpc.cli.status import render

    Console().print(render(found))


def stop(run: str | None, root: Path | None, drain_s: float | None) -> None:
    """End a run in good order and wait for it."""
    directory = locate(run, root)
    if drain_s is None:
        drain_s = load_config(directory / CONFIG).cluster.drain_timeout_s
    was_running = asyncio.run(stop_run(directory, drain_s))
    print(f"{directory.name}: {'stopped' if was_running else 'had ended before'}")


def logs(
    run: str | None, worker: str | None, root: Path | None, *, lines: int, follow: bool
) -> None:
    """Print the last lines of the logs, and with `follow` what comes until the run is over."""
    from tarragon_hpc.cli.logs import follow as new_lines
    from tarragon_hpc.cli.logs import last_lines, log_files

    if worker is None and run is not None and _WORKER.fullmatch(run):
        run, worker = None, run  # `tarragon logs aw0`: of the latest run
    directory = locate(run, root)
    shown, offsets = last_lines(log_files(directory, worker), lines)
    for line in shown:
        print(f"{line.source} | {line.text}")
    if follow:
        for line in new_lines(
            lambda: log_files(directory, worker), offsets, lambda: _running(directory)
        ):
            print(f"{line.source} | {line.text}", flush=True)


def _running(directory: Path) -> bool:
    try:
        found: dict[str, Any] = asyncio.run(query_status(directory))
    except ClusterError:
        return False
    return found["state"] not in _OVER
