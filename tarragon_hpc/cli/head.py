"""`tarragon head RUN`: the head of a run whose directory is there already (a job's batch process).

run_head(run_dir)   submitit pickles it by name; `slurm/head.sbatch` calls the command
be_head(run_dir)    what it starts, and starts again: the process that is the head
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tarragon_hpc.cluster.supervisor import EXIT_BUG, supervise
from tarragon_hpc.errors import TarragonError, UserError
from tarragon_hpc.observe.log import configure

PATIENCE_S = 5.0
# The part of cluster.head_lease_s for which a head may be silent before a standby follows it.
_SILENCE = 0.25

log = logging.getLogger(__name__)


def run_head(run_dir: str) -> int:
    """Have a run headed to its end, whatever becomes of its heads; returns the exit status. Raises
    TarragonError.
    """
    configure("supervisor")
    return supervise(Path(run_dir))


def be_head(
    run_dir: str,
    *,
    standby: bool = False,
    patience_s: float = PATIENCE_S,
    parent: int | None = None,
) -> int:
    """Be the head of a run to its end; returns the exit status. Raises TarragonError.

    standby: once it has none; patience_s: how long somebody else may take to become it. parent: a
    process with whose end this one is told to end.
    """
    # Not for `run_head`, and before the wait, so that a standby is fast when its turn has come.
    import asyncio

    from tarragon_hpc.cli.head_work import answer_requests
    from tarragon_hpc.cli.serve import announce
    from tarragon_hpc.cluster.head import run_service
    from tarragon_hpc.cluster.heir import await_turn
    from tarragon_hpc.cluster.lifeline import die_with
    from tarragon_hpc.cluster.rendezvous import CONFIG, open_run
    from tarragon_hpc.cluster.work import read_work
    from tarragon_hpc.config import load_config

    if parent is not None:
        import signal

        die_with(parent, signal.SIGTERM)
    path = open_run(Path(run_dir))
    configure("head")
    config = load_config(path / CONFIG)
    number = None
    if standby:
        if config.cluster.backend != "slurm":
            raise UserError(f"RUN: {path.name}: is local; its workers end with their head")
        log.info("pid %d waits for the end of the head of %s", os.getpid(), path.name)
        silence_s = _SILENCE * config.cluster.head_lease_s
        number = asyncio.run(await_turn(path, patience_s, silence_s))
        if number is None:
            return 0
    work = read_work(path)
    try:
        if work.kind == "generate":
            return answer_requests(path, work, number)
        service = run_service(
            config, run=path, head_number=number, on_ready=announce, stop=asyncio.Event()
        )
        return asyncio.run(service)
    except TarragonError:
        raise
    except Exception:
        log.exception("the head ends by a bug")
        return EXIT_BUG
