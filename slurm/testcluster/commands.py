"""Slurm's own commands in a cluster, and what they say of its nodes, jobs and steps."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A step that runs: its id J.S, its name, and where."""

    id: str
    name: str
    node: str


class Commands:
    """The cluster whose slurm.conf is in this directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.conf = self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For commands that are to use this cluster."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.conf)}

    def call(self, *command: str, given: str | None = None) -> str:
        """Output of one of Slurm's commands. Raises RuntimeError with its words."""
        done = subprocess.run(
            command,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.root,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def submit(self, script: str, *flags: str) -> str:
        """sbatch of a shell script; the job's id."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}\n"
        flags = (f"--output={self.root}/log/job-%j.out", *flags)
        return self.call("sbatch", "--parsable", *flags, given=text).split(";")[0].strip()

    def output(self, job: str) -> str:
        """What a job of `submit` has printed."""
        path = self.root / "log" / f"job-{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        """Slurm's word for a job's state; GONE if it is forgotten."""
        try:
            words = self.call("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).split()
        except RuntimeError as error:
            if "Invalid job id" in str(error):
                return "GONE"
            raise
        return words[0] if words else "GONE"

    def jobs(self) -> list[str]:
        """Ids of all jobs that are not over."""
        return self.call("squeue", "-h", "-o", "%A").split()

    def nodes(self) -> dict[str, str]:
        """States by node: idle, mix, alloc, drain, drng, down* …"""
        lines = self.call("sinfo", "-h", "-N", "-o", "%N %t").splitlines()
        return dict(line.split() for line in lines)

    def steps(self, job: str) -> list[Step]:
        """The running steps of a job (of all its components), without that of the batch script."""
        parts = ",".join(self.call("squeue", "-h", "-j", job, "-o", "%A").split())
        if not parts:
            return []
        lines = self.call("squeue", "-h", "-s", "-j", parts, "-o", "%i|%j|%N").splitlines()
        found = [Step(*line.split("|")) for line in lines]
        return [step for step in found if step.id.rpartition(".")[2].isdigit()]

    def step(self, job: str, name: str) -> Step:
        """The running step of a name. Raises LookupError."""
        return self._find(job, lambda step: step.name == name, name)

    def named(self, step: str) -> str:
        """The name of a running step J.S. Raises LookupError."""
        return self._find(step.partition(".")[0], lambda found: found.id == step, step).name

    def where(self, step: str) -> str:
        """The node of a running step J.S. Raises LookupError."""
        return self._find(step.partition(".")[0], lambda found: found.id == step, step).node

    def _find(self, job: str, wanted: Callable[[Step], bool], what: str) -> Step:
        steps = self.steps(job)
        for step in steps:
            if wanted(step):
                return step
        raise LookupError(f"job {job} has no step {what}: {steps}")
