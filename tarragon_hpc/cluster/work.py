"""What the head of a prepared run is there for: work.json in the run directory, written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from pathlib import Path

WORK = "work.json"


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve until told to stop, or answer the requests of `source` into `target` (paths or fsspec
    URLs, absolute) and end.
    """

    kind: Literal["serve", "generate"] = "serve"
    source: str = ""
    target: str = ""


def write_work(run_dir: Path, work: Work) -> None:
    """Raises ClusterError."""
    try:
        Directory(run_dir).write(WORK, msgspec.json.encode(work) + b"\n")
    except OSError as error:
        raise ClusterError(f"{run_dir / WORK}: cannot be written: {said(error)}") from None


def read_work(run_dir: Path) -> Work:
    """What was written; serve, if nothing was. Raises UserError if it cannot be read."""
    try:
        data = (run_dir / WORK).read_bytes()
    except FileNotFoundError:
        return Work()
    except OSError as error:
        raise UserError(f"{run_dir / WORK}: {said(error)}") from None
    try:
        return msgspec.json.decode(data, type=Work)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{run_dir / WORK}: is damaged: {error}") from None
