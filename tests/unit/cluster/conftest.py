"""Run directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.config import load_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """A run whose head has not written yet, and whose workers wait for half a second."""
    config = {"model": {"path": "m"}, "cluster": {"start_timeout_s": 0.5}}
    return create_run(load_config(config), tmp_path / "new")


@pytest.fixture
def run_with_head(new_run: Path, tmp_path: Path) -> Path:
    """A run whose head listens at 127.0.0.1:4000 and has a directory for sockets."""
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    write_head(new_run, HeadRecord("r", 1, "node1", "127.0.0.1", 4000, "", str(sockets)))
    return new_run
