"""Give a script to sbatch. What it says against it becomes an error that names the key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.commands import SlurmError, call
from tarragon_hpc.cluster.slurm.refusals import explain
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from tarragon_hpc.config import Config

_PARSABLE = re.compile(r"(\d+)(;\S+)?")


def sbatch(script: str, config: Config, *flags: str) -> str:
    """Submit a job; returns its id. `flags` are for its first component.

    Raises UserError or ClusterError with Slurm's own words.
    """
    try:
        printed = call(["sbatch", "--parsable", *flags], given=script)
    except SlurmError as error:
        raise explain(error.stderr, config) from None
    lines = printed.split()
    match = _PARSABLE.fullmatch(lines[-1]) if lines else None
    if match is None:
        raise ClusterError(f"sbatch: printed {printed.strip()!r} instead of a job id")
    return match[1]
