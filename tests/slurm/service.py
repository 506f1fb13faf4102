"""Runs on the test cluster, submitted and asked as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from slurm.testcluster.cluster import wait
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.cluster.slurm.jobs import jobs_of
from tarragon_hpc.config import merged
from tests.timeline import told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from slurm.testcluster.cluster import Cluster

COMMAND = (sys.executable, "-m", "tarragon_hpc.cli")


def config_for(model: Path, **changes: Any) -> dict[str, Any]:
    """Two AWs, two EWs that shadow each other, a store; nodes of two (false) GPUs.

    changes: sections of the configuration, merged in key by key.
    """
    base = {
        "model": {"path": str(model), "dtype": "float32"},
        "attention": {
            "workers": 2, "threads": 1, "kv_cache": "64MiB", "max_num_batched_tokens": 256,
        },
        "experts": {"workers": 2, "threads": 1, "shadows": 1},
        "checkpoint": {"stores": 1, "memory": "128MiB"},
        "transport": {"spin_us": 0},
        "detection": {"heartbeat_misses": 20},
        "cluster": {
            "backend": "slurm",
            "max_restarts": 1000,
            "slurm": {"time": "30", "nodes": {"gpus_per_node": 2, "cpus_per_slot": 2}},
        },
    }  # fmt: skip
    return merged(base, changes)


class Run:
    """A run on a cluster. `endpoint` is that of its newest head."""

    def __init__(self, cluster: Cluster, run_dir: Path) -> None:
        self.cluster = cluster
        self.run_dir = run_dir

    def __repr__(self) -> str:
        return f"Run({self.run_dir}, jobs {self.jobs})"

    @property
    def endpoint(self) -> str:
        return read_head(self.run_dir).endpoint

    @property
    def jobs(self) -> list[str]:
        """Of its heads, oldest first."""
        return [job.job for job in jobs_of(self.run_dir) if job.kind == "head"]

    @property
    def job(self) -> str:
        """The newest one that has a head."""
        return self.jobs[-1]

    def status(self) -> dict[str, Any]:
        """`tarragon status --json`."""
        told: dict[str, Any] = json.loads(self.tell("status", "--json").stdout)
        return told

    def tell(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """A command of `tarragon` about this run; it must succeed."""
        done = tarragon(self.cluster, command, str(self.run_dir), *options)
        assert done.returncode == 0, f"{done.stderr}\n{self.why()}"
        return done

    def told(self, event: str) -> list[dict[str, Any]]:
        """What its timeline has of that."""
        return told(self.run_dir, event)

    def why(self) -> str:
        """The end of its logs, for the report of a failure."""
        logs = sorted((self.run_dir / "logs").glob("*"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in logs)


def tarragon(
    cluster: Cluster, *arguments: str, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """The command line, on a login node of the cluster."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=cluster.environment, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip


@contextmanager
def serving(
    cluster: Cluster,
    config: Mapping[str, Any],
    directory: Path,
    *,
    state: str | None = "COMPLETED",
) -> Iterator[Run]:
    """`tarragon serve --wait`; stopped in good order at the end, after which nothing is left.

    state: of its last job then; None: any.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    run = Run(cluster, directory / "run")
    try:
        done = tarragon(cluster, "serve", str(file), "--run-dir", str(run.run_dir), "--wait")
        assert done.returncode == 0, f"{done.stderr}\n{run.why()}"
        assert f"ready: {run.endpoint}" in done.stdout
        yield run
        run.tell("stop")
        wait(lambda: not cluster.jobs(), 15, "the end of the run's jobs")
        assert state is None or cluster.state(run.jobs[-1]) == state
    finally:
        if left := cluster.jobs():
            cluster.cancel(*left)
