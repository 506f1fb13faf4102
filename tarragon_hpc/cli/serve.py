"""`tarragon serve`: a run in the foreground."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.work import Work
from tarragon_hpc.config import Config, load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.observe.log import configure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_config(
    path: Path | None,
    overrides: Sequence[str],
    site: str | None = None,
    *,
    allow_fragile: bool = False,
) -> Config:
    """The configuration of a command line; without a file the overrides are all of it."""
    if path is None and not overrides:
        raise ConfigError("CONFIG", "name a file, or give at least --set model.path=DIR")
    more = ["cluster.slurm.allow_fragile=true"] if allow_fragile else []
    return load_config(path or {}, [*overrides, *more], site=site)


def serve(
    path: Path | None,
    overrides: Sequence[str],
    run_dir: Path | None,
    *,
    site: str | None = None,
    wait: bool = False,
    allow_fragile: bool = False,
) -> int:
    """Serve until told to stop, or submit a job that does; returns the exit status.

    One line on stdout: where it serves, or which job was submitted. wait: for it to serve.
    """
    config = read_config(path, overrides, site, allow_fragile=allow_fragile)
    if config.cluster.backend == "slurm":
        from tarragon_hpc.cli.submit import submit

        return submit(config, Work(), run_dir, wait=wait)
    configure("head")
    return asyncio.run(_serve(config, run_dir))


async def _serve(config: Config, run_dir: Path | None) -> int:
    return await run_service(config, run_dir=run_dir, on_ready=announce, stop=asyncio.Event())


def announce(info: RunInfo) -> None:
    """Say, on a line of standard output, where a run serves."""
    print(f"ready: {info.endpoint}", flush=True)
