"""The CPUs and GPUs that this process may hand out to local workers. No torch, no CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess


def usable_cpus() -> tuple[int, ...]:
    """CPUs this process may run on (a container or Slurm step may have bound it)."""
    return tuple(sorted(os.sched_getaffinity(0)))


def usable_gpus() -> tuple[str, ...]:
    """GPU ids as CUDA_VISIBLE_DEVICES takes them, in its order if it is set; () without any."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        ids = [part.strip() for part in chosen.split(",")]
        return tuple(i for i in ids if i and i != "-1")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(
            [tool, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip().isdigit())
