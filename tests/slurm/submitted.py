"""Stand-ins for a head, to test its submission: imported by name in the batch process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def report(run_dir: str) -> int:
    """Say what it is, and what signal comes; ends with status 5."""
    path = Path(run_dir)
    heard: list[str] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda n, _: heard.append(signal.Signals(n).name))
    told = {name: os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_HET_SIZE")}
    parent = Path(f"/proc/{os.getppid()}/comm").read_text().strip()
    (path / "begun.json").write_text(json.dumps({**told, "parent": parent}))
    deadline = time.monotonic() + 60
    while not heard and time.monotonic() < deadline:
        time.sleep(0.05)
    (path / "heard").write_text(" ".join(heard))
    sys.exit(5)
