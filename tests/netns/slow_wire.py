"""A way to a host that takes time, where there is no netem.

    python slow_wire.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_MS

Makes two TAP devices and says so; carries frames both ways until its standard input ends. A TAP
device cuts what the kernel sends into frames and fills in checksums.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.bench.hosts import Hosts

_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_FRAME = 65536


@contextmanager
def slow_wire(hosts: Hosts, host: str, delay_ms: int) -> Iterator[None]:
    """The host is joined to the switch by such a wire, instead of by its own; nothing is closed."""
    namespace = hosts.prefix(host)[-1]
    address = f"{hosts.address(host)}/{hosts.block.partition('/')[2]}"
    command = [sys.executable, __file__, hosts.switch, "slow", namespace, "slow", str(delay_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as wire:
        assert wire.stdin
        assert wire.stdout
        assert wire.stdout.readline() == b"up\n"
        _ip(hosts.switch, "link set slow master bridge up")
        # With the same hardware address, for others have it in their tables.
        show = ["ip", "-n", namespace, "-json", "link", "show", "eth0"]
        (eth0,) = json.loads(subprocess.check_output(show))
        _ip(namespace, f"link set slow address {eth0['address']}")
        _move(namespace, address, "eth0", "slow")
        try:
            yield
        finally:
            _move(namespace, address, "slow", "eth0")
            wire.stdin.close()


def _move(namespace: str, address: str, old: str, new: str) -> None:
    _ip(
        namespace,
        f"address del {address} dev {old}",
        f"link set {old} down",
        f"address add {address} dev {new}",
        f"link set {new} up",
    )


def _ip(namespace: str, *commands: str) -> None:
    batch = ["ip", "-n", namespace, "-batch", "-"]
    subprocess.run(batch, input="\n".join(commands), text=True, check=True)


def enter(namespace: str) -> None:
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {namespace}")


def tap(namespace: str, name: str) -> int:
    enter(namespace)
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
    one_namespace, one_name, other_namespace, other_name, delay_ms = sys.argv[1:]
    one, other = tap(one_namespace, one_name), tap(other_namespace, other_name)
    print("up", flush=True)
    carry(one, other, float(delay_ms) / 1000)
