"""What a process can say about the node that it runs on."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIOCGIFADDR = 0x8915  # netdevice(7)
_GLOBAL_SCOPE = "00"


def boot_id(proc: Path = Path("/proc")) -> str:
    """Names the running kernel: the same for all processes of a node until it is booted again."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


def interfaces() -> dict[str, str]:
    """An address of every network interface that has one; IPv4 if there is, else a global IPv6."""
    found = _ipv6()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, request)
            except OSError:
                continue  # no IPv4 address
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def step_id(environ: Mapping[str, str] = os.environ) -> str:
    """The Slurm step that this process belongs to, `job.step`; empty without Slurm."""
    job, step = environ.get("SLURM_JOB_ID"), environ.get("SLURM_STEP_ID")
    return f"{job}.{step}" if job and step else ""


def _ipv6(proc: Path = Path("/proc")) -> dict[str, str]:
    try:
        lines = (proc / "net/if_inet6").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        digits, _, _, scope, _, name = line.split()
        if scope == _GLOBAL_SCOPE:
            found.setdefault(name, str(ipaddress.IPv6Address(int(digits, 16))))
    return found
