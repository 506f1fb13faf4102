"""What `tarragon doctor` says of one thing, and how it asks a library without loading it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """One thing looked for: there or not, and a line on what was found or why there is nothing."""

    present: bool
    detail: str


def probe(script: str, timeout_s: float = 180) -> dict[str, Any] | str:
    """The JSON a script prints last in a fresh interpreter, or one line on why it did not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"did not import within {timeout_s:.0f} s"
    if done.returncode < 0:
        return f"import ends the process ({signal.Signals(-done.returncode).name})"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    if done.returncode:
        return lines[-1][:300]
    found: dict[str, Any] = json.loads(lines[-1])
    return found
