"""A wire with a delay between this network namespace and another one, where there is no netem.

    python slow_wire.py NAMESPACE NEAR FAR DELAY_MS

Makes the TAP devices NEAR here and FAR there and says so; carries frames both ways until its
standard input ends. A TAP device cuts what the kernel sends into frames and fills in checksums.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_FRAME = 65536


def enter(namespace: str) -> None:
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {namespace}")


def tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_HEADER))
    return fd


def carry(near: int, far: int, delay_s: float) -> None:
    other = {near: far, far: near}
    on_the_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        readable, _, _ = select.select([near, far, sys.stdin], [], [], wait_s)
        if sys.stdin in readable:
            return
        now = time.monotonic()
        for fd in readable:
            on_the_way.append((now + delay_s, other[fd], os.read(fd, _FRAME)))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, fd, frame = on_the_way.popleft()
            try:
                os.write(fd, frame)
            except OSError:  # that end is down
                continue


if __name__ == "__main__":
    namespace, near_name, far_name, delay_ms = sys.argv[1:]
    here = tap(near_name)
    enter(namespace)
    there = tap(far_name)
    print("up", flush=True)
    carry(here, there, float(delay_ms) / 1000)
