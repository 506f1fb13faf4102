"""What processes of this host have used: CPU time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SCHEDULED = 2  # CPUCLOCK_SCHED of the kernel's clock ids: nanoseconds, all threads


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process since its start; None if it is gone.

    From its CPU clock (clock_getcpuclockid(3)): /proc counts in ticks of 10 ms.
    """
    try:
        return time.clock_gettime((~pid << 3) | _SCHEDULED)
    except OSError:
        return None


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process, shared pages included; None if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return None
