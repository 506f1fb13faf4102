"""Run Slurm's commands: with a time limit, a plain environment, and Slurm's own words in errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LIMIT_S = 60.0


class SlurmError(ClusterError):
    """A command of Slurm failed. `words`: what it said, without the name of the command; `stderr`:
    all that it said.
    """

    def __init__(self, command: str, words: str, stderr: str = "") -> None:
        super().__init__(f"{command}: {words}")
        self.words = words
        self.stderr = stderr or words

    @property
    def unknown_job(self) -> bool:
        """It is about a job or step that Slurm does not know, or not any more."""
        return "nvalid job id" in self.words


def plain_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Without what a surrounding job would pass on to a new one; SLURM_CONF stays."""
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER"}
    return {
        name: value
        for name, value in environ.items()
        if name in kept or not name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SLURMD_"))
    }


def call(
    command: Sequence[str],
    *,
    given: str | None = None,
    limit_s: float = _LIMIT_S,
    stderr: bool = False,
) -> str:
    """What a command prints. `given`: its standard input. stderr: what it says there follows.

    Raises SlurmError.
    """
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=limit_s, check=False,
            env=plain_environment(), stdin=None if given is not None else subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(command[0], "no such command; is Slurm installed here?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(command[0], f"no answer within {limit_s:g} s") from None
    if done.returncode:
        raise SlurmError(command[0], said(command[0], done.stderr, done.returncode), done.stderr)
    return done.stdout + done.stderr if stderr else done.stdout


async def acall(command: Sequence[str], *, limit_s: float = _LIMIT_S) -> str:
    """`call`, in a thread."""
    return await asyncio.to_thread(call, command, limit_s=limit_s)


async def show_job(job: str, *, limit_s: float = _LIMIT_S) -> str:
    """All that Slurm says of a job, on a line for each component. Raises SlurmError."""
    return await acall(["scontrol", "show", "job", "--oneliner", job], limit_s=limit_s)


def said(command: str, stderr: str, status: int) -> str:
    """The first error in a command's stderr, without decoration."""
    for line in stderr.splitlines():
        words = line.strip().removeprefix(f"{command}: ").removeprefix("error: ")
        if words:
            return words
    return f"exit status {status}"
