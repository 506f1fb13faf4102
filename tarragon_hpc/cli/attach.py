"""`tarragon attach RUN`: become the head of a run on Slurm that has none, from the login node."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from tarragon_hpc.cli.runs import locate
from tarragon_hpc.cli.serve import announce
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.head import run_service
from tarragon_hpc.cluster.heir import is_there
from tarragon_hpc.cluster.inheritance import last_state
from tarragon_hpc.cluster.rendezvous import (
    CONFIG,
    claim_head,
    known_head,
    list_run,
    newest_claim,
    open_run,
)
from tarragon_hpc.cluster.work import read_work
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import UserError
from tarragon_hpc.observe.log import configure
from tarragon_hpc.orchestrator.state import RunPhase

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.config import Config


def attach(run: str | None, root: Path | None, *, force: bool) -> int:
    """Head a run until it ends or this process is told to leave it; returns the exit status."""
    path = open_run(locate(run, root))
    config = load_config(path / CONFIG)
    number = _claim(path, config, force=force)
    configure("head")
    print(
        f"attached to {path.name} as head {number}; Ctrl-C leaves it to the next head", flush=True
    )

    def leave() -> NoReturn:
        lease = config.cluster.head_lease_s
        print(f"left {path.name}: its workers wait {lease:g} s for the next head", file=sys.stderr)
        logging.shutdown()
        os._exit(0)

    work = read_work(path)
    if work.kind == "generate":
        from tarragon_hpc.cli.head_work import answer_requests

        return answer_requests(path, work, number, on_interrupt=leave)
    service = run_service(
        config,
        run=path,
        head_number=number,
        on_ready=announce,
        stop=asyncio.Event(),
        on_interrupt=leave,
    )
    return asyncio.run(service)


def _claim(path: Path, config: Config, *, force: bool) -> int:
    """Become the newest head. Raises UserError if there is no need or no way."""
    if config.cluster.backend != "slurm":
        raise UserError(f"RUN: {path.name}: is local; its workers ended with its head")
    state = last_state(path)
    if state is not None and state.phase is RunPhase.ENDED:
        how = (
            "was handed over; `tarragon resume` goes on with it" if state.handover else "has ended"
        )
        raise UserError(f"RUN: {path.name}: {how} ({state.reason})")
    claimed = newest_claim(list_run(Directory(path)))
    if not claimed:
        raise UserError(f"RUN: {path.name}: has had no head yet; its job starts it")
    if not force:
        record = known_head(path)
        if record is not None and asyncio.run(is_there(path, record)):
            raise UserError(
                f"RUN: {path.name}: its head (pid {record.pid} on {record.host}) is there;"
                " --force takes the run away from it"
            )
    number = claim_head(path, None if force else claimed)
    if number is None:
        raise UserError(f"RUN: {path.name}: another process has just become its head")
    return number
