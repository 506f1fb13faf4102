"""Give scripts to sbatch: of a run's next heads, of single workers.

What it says against one becomes an error that names the key. What was submitted is kept in the run
directory, in jobs/. A run's first job is submitted by `submit.py`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.rendezvous import CONFIG
from tarragon_hpc.cluster.slurm.commands import SlurmError, call
from tarragon_hpc.cluster.slurm.jobs import HEAD, JOBS, Job, record
from tarragon_hpc.cluster.slurm.refusals import explain, never
from tarragon_hpc.cluster.slurm.script import HEAD_LOG, as_pattern, head_script, probes
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.config import Config

_PARSABLE = re.compile(r"(\d+)(;\S+)?")
_CANCEL_S = 20.0

PYTHON = shlex.quote(sys.executable)


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


def would_run(script: str, config: Config) -> str:
    """Slurm's answer to whether and when a script would run. Raises UserError or ClusterError."""
    try:
        said = call(["sbatch", "--test-only"], given=script, stderr=True)
    except SlurmError as error:
        raise explain(error.stderr, config) from None
    return "\n".join(line.removeprefix("sbatch: ") for line in said.splitlines() if line.strip())


def check_possible(config: Config) -> None:
    """Raises UserError if no nodes of the cluster will ever be as this run asks for, although
    Slurm takes its job. Any other doubt is left to the queue.
    """
    for script in probes(config):
        try:
            call(["sbatch", "--test-only"], given=script)
        except SlurmError as error:
            if never(error.stderr):
                raise explain(error.stderr, config) from None


def run_script(config: Config, run_dir: Path, command: list[str], exports: str = "") -> str:
    """The script of a job that has a head of this run. Raises ConfigError."""
    log = as_pattern(run_dir / "logs" / HEAD_LOG)
    shared = _is_there(run_dir)
    lines = f"{shared}\n{exports}" if exports else shared
    return head_script(config, command, job_name=run_dir.name, output=log, exports=lines)


def _is_there(run_dir: Path) -> str:
    """A shell line that ends a job which does not see its run, before submitit waits for it."""
    file = shlex.quote(str(run_dir / CONFIG))
    problem = "is not there; run.root must be on a filesystem that all nodes mount"
    return f'[ -f {file} ] || {{ echo "error: $(hostname): "{file}" {problem}" >&2; exit 2; }}'


def submit_head(config: Config, run_dir: Path, *, number: int, after: str | None = None) -> Job:
    """Submit a next head of a run, the `number`-th job of its chain, and record it.

    after: the job at whose end it may start. Raises UserError or ClusterError.
    """
    command = [PYTHON, "-u", "-m", "tarragon_hpc.cli", "head", shlex.quote(str(run_dir))]
    script = run_script(config, run_dir, command)
    flags = [f"--dependency=afterany:{after}"] if after else []
    job = Job(sbatch(script, config, *flags), HEAD, time.time(), number=number)
    keep(run_dir, job, script)
    return job


def keep(run_dir: Path, job: Job, script: str) -> None:
    """Remember a job that was submitted, and its script; or cancel it. Raises ClusterError."""
    try:
        record(run_dir, job)
        (run_dir / JOBS / f"{job.job}.sh").write_text(script, encoding="utf-8")
    except (OSError, ClusterError) as error:
        cancel(job.job)
        if isinstance(error, OSError):
            raise ClusterError(f"{run_dir / JOBS}: {error.strerror}") from None
        raise


def cancel(*jobs: str) -> None:
    """As well as it goes: whoever calls has a mistake to report already."""
    with contextlib.suppress(SlurmError):
        call(["scancel", *jobs], limit_s=_CANCEL_S)
