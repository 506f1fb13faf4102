"""`tarragon serve`: a run in the foreground."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.config import Config, load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.observe.log import configure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_config(path: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration of a command line; without a file the overrides are all of it."""
    if path is None and not overrides:
        raise ConfigError("CONFIG", "name a file, or give at least --set model.path=DIR")
    return load_config(path or {}, overrides)


def serve(path: Path | None, overrides: Sequence[str], run_dir: Path | None) -> int:
    """Serve until told to stop; returns the exit status. One line on stdout: where it serves."""
    config = read_config(path, overrides)
    configure("head")
    return asyncio.run(_serve(config, run_dir))


async def _serve(config: Config, run_dir: Path | None) -> int:
    return await run_service(config, run_dir=run_dir, on_ready=_announce, stop=asyncio.Event())


def _announce(info: RunInfo) -> None:
    print(f"ready: {info.endpoint}", flush=True)
