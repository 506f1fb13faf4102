"""A run's first job, through submitit. The only module that imports it.

submitit keeps what it needs under submitit/ in the run directory: the pickled call, which becomes
the batch process (`exec`, no srun: a step could start no others), and its result. The text that is
submitted is that of `script.py`, so that sites can have every directive their way; jobs are
watched by squeue, since sites without an accounting database have no sacct.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from submitit.core.utils import JobPaths
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from tarragon_hpc.cluster.slurm import queue
from tarragon_hpc.cluster.slurm.jobs import HEAD, Job
from tarragon_hpc.cluster.slurm.sbatch import PYTHON, cancel, keep, run_script, sbatch
from tarragon_hpc.config import time_minutes
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tarragon_hpc.config import Config

FOLDER = "submitit"

_EXPORTS = "export SUBMITIT_EXECUTOR=slurm"


class QueueWatcher(SlurmInfoWatcher):  # type: ignore[misc]
    """The states of submitit's jobs, by squeue."""

    def _make_command(self) -> list[str] | None:
        jobs = sorted(self._registered - self._finished)
        if not jobs:
            return None
        return ["squeue", "--noheader", "--states=all", f"--format={queue.FORMAT}",
                f"--jobs={','.join(jobs)}"]  # fmt: skip

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """What squeue said, in the form of submitit."""
        text = string if isinstance(string, str) else string.decode()
        return {
            job: {"JobID": job, "State": view.state, "NodeList": ",".join(view.nodes)}
            for job, view in queue.parse(text).items()
        }


class HeadJob(SlurmJob):  # type: ignore[misc]
    """A job whose batch process is a head."""

    watcher = QueueWatcher(delay_s=30)


class HeadExecutor(SlurmExecutor):  # type: ignore[misc]
    """Submits one head, by the script of its run."""

    job_class = HeadJob

    def __init__(self, config: Config, run_dir: Path) -> None:
        try:
            super().__init__(run_dir / FOLDER, python=PYTHON)
        except RuntimeError:
            raise ClusterError("srun: no such command; is Slurm installed here?") from None
        self._config = config
        self._run_dir = run_dir
        self.update_parameters(time=time_minutes(config.cluster.slurm.time), use_srun=False)

    def _num_tasks(self) -> int:
        return 1  # only the head has a result

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return run_script(self._config, self._run_dir, [command], _EXPORTS)

    def _internal_process_submissions(self, delayed_submissions: list[Any]) -> list[Any]:
        if len(delayed_submissions) != 1:
            raise ValueError("a run has one head: arrays cannot be submitted")
        found: list[Any] = super()._internal_process_submissions(delayed_submissions)
        return found

    def _submit_command(self, command: str) -> HeadJob:
        """Like submitit's own, but errors are ours, and nothing of a job around is passed on."""
        uid = uuid.uuid4().hex
        script = self._make_submission_file_text(command, uid)
        file = JobPaths.get_first_id_independent_folder(self.folder) / f".submission_{uid}.sh"
        file.write_text(script, encoding="utf-8")
        job = HeadJob(folder=self.folder, job_id=sbatch(script, self._config), tasks=[0])
        job.paths.move_temporary_file(file, "submission_file")
        return job


def submit_run(config: Config, run_dir: Path, head: Callable[[str], int]) -> Job:
    """Submit the job of a run whose directory is there; it calls `head(run_dir)`, a function of a
    module. Records it. Raises UserError or ClusterError; then there is no job.
    """
    executor = HeadExecutor(config, run_dir)
    try:
        submitted = executor.submit(head, str(run_dir))
    except ClusterError:
        # The answer may be lost, the job not. Its name is that of this run alone.
        cancel(f"--name={run_dir.name}")
        raise
    job = Job(submitted.job_id, HEAD, time.time())
    script = submitted.paths.submission_file.read_text(encoding="utf-8")
    keep(run_dir, job, script)
    return job
