"""A real service in processes of its own, for benches: `tarragon serve`, as a user has it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

READY = "ready: "


@dataclass(frozen=True, slots=True)
class Service:
    """A serving run. `endpoint` ends in /v1."""

    endpoint: str
    run_dir: Path
    process: subprocess.Popen[str]

    def status(self) -> dict[str, Any]:
        """What `tarragon status --json` says."""
        command = [sys.executable, "-m", "tarragon_hpc.cli", "status", str(self.run_dir), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@contextlib.contextmanager
def serving(
    config: dict[str, Any],
    directory: Path,
    *,
    start_timeout_s: float = 300,
    env: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Start `tarragon serve` with this configuration; stop it in good order at the end.

    env: what its environment has beside ours.

    The configuration, the run directory and the log go under `directory`. Raises ClusterError with
    the end of the log if it does not come up.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, run_dir, log = directory / "config.yaml", directory / "run", directory / "serve.log"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tarragon_hpc.cli", "serve", str(file)]
    command += ["--run-dir", str(run_dir)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
        )
    try:
        timer = threading.Timer(start_timeout_s, process.kill)
        timer.start()
        try:
            endpoint = _wait_ready(process)
        finally:
            timer.cancel()
        if endpoint is None:
            process.wait()
            tail = log.read_text()[-2000:]
            raise ClusterError(f"the service did not start (exit {process.returncode}):\n{tail}")
        yield Service(endpoint, run_dir, process)
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[str]) -> str | None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            return line.removeprefix(READY).strip()
    return None


def _stop(process: subprocess.Popen[str], grace_s: float = 60) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
