"""The clusters of this user on this machine: whose they are, and which ports they took."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm.testcluster import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

# Below the ports that the kernel gives to those who ask for any.
_FIRST, _LAST = 12_000, 31_000


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"tarragon-testcluster-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _locked() -> Iterator[Path]:
    folder = _folder()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


def enter(name: str, root: Path, count: int, *, owner: int | None) -> list[int]:
    """Note a cluster and give it ports. owner: the process that it is to end with, if any."""
    with _locked() as folder:
        taken = {port for entry in _entries(folder) for port in entry["ports"]}
        ports = _free(count, taken)
        entry = {
            "root": str(root),
            "ports": ports,
            "owner": owner,
            "started": None if owner is None else processes.started(owner),
        }
        (folder / f"{name}.json").write_text(json.dumps(entry))
    return ports


def leave(name: str) -> None:
    """A cluster is gone."""
    with _locked() as folder:
        (folder / f"{name}.json").unlink(missing_ok=True)


def abandoned() -> list[Path]:
    """Directories of clusters whose owner has ended without taking them down."""
    with _locked() as folder:
        return [
            Path(entry["root"])
            for entry in _entries(folder)
            if entry["owner"] is not None and processes.started(entry["owner"]) != entry["started"]
        ]


def _free(count: int, taken: set[int]) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.randint(_FIRST, _LAST)
        if port in taken or port in found:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
    return found
