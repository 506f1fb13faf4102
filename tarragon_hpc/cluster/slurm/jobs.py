"""Which Slurm jobs belong to a run: one immutable file each in its directory, jobs/<id>.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.cluster.directory import Directory, said
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

JOBS = "jobs"
HEAD, WORKER = "head", "worker"


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job that was submitted for a run. kind: head (it has the head and, but for pool, the
    workers; its number counts the links of a chain from 1) or worker (of one incarnation).
    """

    job: str
    kind: str
    submitted: float
    """Seconds since 1970."""
    number: int = 1
    worker: str = ""
    incarnation: int = 0


def record(run_dir: Path, job: Job) -> None:
    """Remember a job. Raises ClusterError."""
    (run_dir / JOBS).mkdir(mode=0o700, exist_ok=True)
    directory = Directory(run_dir).under(JOBS)
    try:
        directory.write(f"{job.job}.json", msgspec.json.encode(job))
    except OSError as error:
        raise ClusterError(f"{directory.path}: cannot be written: {said(error)}") from None


def jobs_of(run_dir: Path) -> list[Job]:
    """The jobs of a run, oldest first; files that are no jobs are ignored."""
    directory = Directory(run_dir).under(JOBS)
    found = []
    try:
        for name in directory.names():
            try:
                found.append(msgspec.json.decode(directory.read(name, 1 << 16), type=Job))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
    except OSError:
        return []
    return sorted(found, key=lambda job: (job.submitted, job.job))
