"""`tarragon status`, `logs` and `endpoint`: look at a run that exists."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.rendezvous import find_run
from tarragon_hpc.cluster.slurm.sight import is_slurm, queue_watch, slurm_status
from tarragon_hpc.cluster.slurm.standing import OVER
from tarragon_hpc.cluster.slurm.waiting import Verdict, judge
from tarragon_hpc.config import RunConfig
from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

# What ends `logs -f` and `status --watch`.
ENDS = ("ended", *OVER)

_LOGS = re.compile(r"(aw|ew|cs|spare)\d+(\.\d+)?|head|job")
_RUNNING_S = 1.0


def locate(run: str | None, root: Path | None) -> Path:
    """The directory of the run that was named. Raises UserError."""
    return find_run(root or RunConfig().root, run)


def looker(directory: Path) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Looks at a run, again and again: on Slurm its jobs too, with few questions to Slurm."""
    if not is_slurm(directory):
        return lambda: query_status(directory)
    watch = queue_watch(directory)
    return lambda: slurm_status(directory, watch)


async def once(directory: Path) -> dict[str, Any]:
    """One look at a run. Raises ClusterError if there is nothing to see, never on Slurm."""
    return await looker(directory)()


def status(run: str | None, root: Path | None, *, as_json: bool, watch: bool) -> None:
    """Print what the run's head (or its journal, or its jobs) says; watch: until it is over."""
    directory = locate(run, root)
    if watch:
        from tarragon_hpc.cli.watching import watch as command

        if as_json:
            raise UserError("--json: is not for --watch; call it again and again instead")
        command(looker(directory), lambda found: found["state"] in ENDS)
        return
    found = asyncio.run(once(directory))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    from tarragon_hpc.cli.status import render, with_log

    Console().print(render(with_log(found)), crop=False)


def endpoint(run: str | None, root: Path | None, *, ssh: bool, wait: bool) -> int:
    """Print where the run serves; returns the exit status."""
    directory = locate(run, root)
    slurm = is_slurm(directory)
    if wait and slurm:
        from tarragon_hpc.cli.waiting import INTERRUPTED
        from tarragon_hpc.cli.waiting import wait as wait_for

        seen = wait_for(directory, "serving")
        if seen is None:
            return INTERRUPTED
        found = seen
    else:
        found = asyncio.run(_serving(directory) if wait else once(directory))
    verdict = judge(found, "serving")
    if not found["endpoint"] or verdict.failed:
        raise UserError(f"RUN: {directory.name} has no endpoint: {verdict.line}")
    if not verdict.done:
        print(f"not serving yet: {verdict.line}", file=sys.stderr)
    if ssh and not found.get("tunnel"):
        raise UserError(f"--ssh: {directory.name} runs on this machine, not on Slurm")
    print(found["tunnel"] if ssh else found["endpoint"])
    return 0


async def _serving(directory: Path) -> dict[str, Any]:
    while True:
        found = await query_status(directory)
        verdict: Verdict = judge(found, "serving")
        if verdict.done or verdict.failed:
            return found
        await asyncio.sleep(_RUNNING_S)


def logs(
    run: str | None, worker: str | None, root: Path | None, *, lines: int, follow: bool
) -> None:
    """Print the last lines of the logs, and with `follow` what comes until the run is over."""
    from tarragon_hpc.cli.logs import follow as new_lines
    from tarragon_hpc.cli.logs import last_lines, log_files

    if worker is None and run is not None and _LOGS.fullmatch(run):
        run, worker = None, run  # `tarragon logs aw0`: of the latest run
    directory = locate(run, root)
    # Of a run that only begins there may be no log yet.
    shown, offsets = last_lines(log_files(directory, worker, awaited=follow), lines)
    for line in shown:
        print(f"{line.source} | {line.text}")
    if follow:
        for line in new_lines(
            lambda: log_files(directory, worker, awaited=True), offsets, _running(directory)
        ):
            print(f"{line.source} | {line.text}", flush=True)


def _running(directory: Path) -> Callable[[], bool]:
    """Whether the run goes on; the run is asked once a second at most."""
    look = looker(directory)
    asked, answer = float("-inf"), True

    def running() -> bool:
        nonlocal asked, answer
        if answer and time.monotonic() - asked >= _RUNNING_S:
            asked = time.monotonic()
            try:
                answer = asyncio.run(_state(look)) not in ENDS
            except ClusterError:
                answer = False
        return answer

    return running


async def _state(look: Callable[[], Awaitable[dict[str, Any]]]) -> str:
    return str((await look())["state"])
