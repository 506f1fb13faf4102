"""What `tarragon doctor` says of the ways from this node to others."""

from __future__ import annotations

import functools
import os
import resource
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tarragon_hpc.cli.finding import Finding, probe
from tarragon_hpc.config.schema import RdmaConfig
from tarragon_hpc.transport.interfaces import Interface, read_interfaces
from tarragon_hpc.transport.rdma_ports import Port, choose_port, find_ports

_PROBE = """
import importlib.metadata, json, re
import pyverbs.device
from pyverbs.pyverbs_error import PyverbsError
try:
    devices = [device.name.decode() for device in pyverbs.device.get_device_list()]
except PyverbsError:
    devices = []
try:
    version = importlib.metadata.version("pyverbs")
except importlib.metadata.PackageNotFoundError:
    version = ""
library = re.search(r"libibverbs\\.so\\.([\\d.]+)", open("/proc/self/maps").read())
print(json.dumps({"devices": devices, "version": version, "library": library and library[1]}))
"""
# Where distributions put it, for the Python that is theirs.
_SYSTEM = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3*/site-packages")
_INSTALL = "apt-get install python3-pyverbs ibverbs-providers (RHEL: dnf install python3-pyverbs)"
_CAP_IPC_LOCK = 14  # linux/capability.h: as good as no limit
# A peer takes 32 MiB at the default slots and 4,096 values of 16 bits a row.
_ENOUGH_LOCKED = 1 << 30


@dataclass(frozen=True)
class Network:
    """What there is to reach other nodes by; each part is looked at when it is first asked for."""

    sysfs: Path = Path("/sys")
    settings: RdmaConfig = field(default_factory=RdmaConfig)

    @functools.cached_property
    def ports(self) -> list[Port]:
        """Of all RDMA devices."""
        return find_ports(self.sysfs)

    @functools.cached_property
    def library(self) -> dict[str, Any] | str:
        """What pyverbs says of itself, or why it does not."""
        return probe(_PROBE)

    def rdma(self) -> Finding:
        """Every port, whether it can be used, and by which GID."""
        if not self.ports:
            return Finding(False, f"no RDMA device in {self.sysfs}/class/infiniband")
        usable = any(port.usable for port in self.ports)
        return Finding(usable, "; ".join(map(_describe, self.ports)))

    def verbs(self) -> Finding:
        """pyverbs and libibverbs; or why not, and what to do."""
        if isinstance(self.library, str):
            return Finding(False, f"{self.library}; {_hint()}")
        version, library = self.library["version"], self.library["library"] or "of unknown version"
        return Finding(True, f"{f'pyverbs {version}'.strip()} on libibverbs {library}")

    def transport(self) -> Finding:
        """What `transport.kind: auto` uses to other nodes, and why not RDMA."""
        port = choose_port(self.ports, self.settings)
        if isinstance(port, str):
            reason = port
        elif isinstance(self.library, str):
            reason = f"{port} is there, but not pyverbs (see verbs)"
        elif port.device not in self.library["devices"]:
            reason = f"libibverbs does not know {port.device}; apt-get install ibverbs-providers"
        else:
            words = f"rdma by {port}, GID {port.gid_index}, to peers on the same fabric"
            return Finding(True, f"auto: {words} ({port.fabric}); tcp to others")
        return Finding(True, f"auto: tcp to other nodes: {reason}")

    def memlock(self) -> Finding:
        """Whether RDMA may keep its buffers in memory."""
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return _memlock(limit, _may_lock_all(), bool(self.ports))

    def interfaces(self) -> Finding:
        """What `transport.interface` may name."""
        there = [i for i in read_interfaces() if i.addresses and i.name != "lo"]
        if not there:
            return Finding(False, "no interface with an address but the loopback")
        told = [f"{i}{_speed(self.sysfs, i)}" for i in there]
        return Finding(any(i.up for i in there), f"{'; '.join(told)} (transport.interface: NAME)")


def _describe(port: Port) -> str:
    layer = "RoCE" if port.link_layer == "Ethernet" else port.link_layer
    gid = next((g for g in port.gids if g.index == port.gid_index), None)
    kind = f" {gid.kind}" if gid and layer == "RoCE" else ""
    state = port.state or "in an unknown state"
    if port.state == "ACTIVE" and not port.usable:
        state += f" but {port.why_not}"
    parts = [state, layer]
    parts += [f"GID {port.gid_index} ({gid.ipv4 or gid.address}{kind})"] if gid else []
    parts += [f"LID {port.lid}"] if port.lid else []
    parts += [f"MTU {port.mtu}"] if port.mtu else []
    parts += [f"netdev {port.netdev}"] if port.netdev else []
    parts += [f"{port.rate:g} Gb/s"] if port.rate else []
    return f"{port}: {', '.join(filter(None, parts))}"


def _hint() -> str:
    """How this Python gets pyverbs."""
    for place in (p for pattern in _SYSTEM for p in Path("/").glob(pattern[1:])):
        package = place / "pyverbs"
        if not package.is_dir():
            continue
        if not (package / f"device{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
            return f"{package} is for another Python; make the environment with that one"
        return f"ln -s {package} {sysconfig.get_path('platlib')}/"
    return _INSTALL


def _memlock(limit: int, capable: bool, devices: bool) -> Finding:
    if limit == resource.RLIM_INFINITY or capable:
        return Finding(True, "no limit")
    told = f"ulimit -l is {limit >> 10} KiB"
    if limit >= _ENOUGH_LOCKED:
        return Finding(True, told)
    if not devices:
        return Finding(True, f"{told}: little, but there is no RDMA device")
    return Finding(
        False,
        f"{told}, too little for RDMA; ask for `memlock unlimited` in limits.conf "
        "(and with Slurm PropagateResourceLimitsExcept=MEMLOCK)",
    )


def _may_lock_all() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return os.geteuid() == 0


def _speed(sysfs: Path, interface: Interface) -> str:
    """Where the driver tells: virtual ones do not."""
    try:
        speed = int((sysfs / "class" / "net" / interface.name / "speed").read_text())
    except (OSError, ValueError):
        return ""
    return f" {speed / 1000:g} Gb/s" if speed > 0 else ""
