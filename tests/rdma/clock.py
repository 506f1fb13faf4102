"""How fast this processor's time stamp counter runs.

An interpreted guest reads the host's. Left to itself it measures the rate as it boots, and on a
busy machine gets it wrong by any factor, so that its seconds are not ours.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


def kernel_argument() -> str:
    """For the guest's kernel; nothing where its counter is not known to be this processor's."""
    return f"tsc_early_khz={round(_khz())}" if platform.machine() == "x86_64" else ""


def _khz(seconds: float = 0.2) -> float:
    with mmap.mmap(-1, len(_RDTSC), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_RDTSC)
        place = (ctypes.c_char * len(_RDTSC)).from_buffer(code)
        ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        first, begin = ticks(), time.monotonic_ns()
        time.sleep(seconds)
        last, end = ticks(), time.monotonic_ns()
        del place
    return (last - first) / (end - begin) * 1e6
