"""Which RDMA port this node uses, from what the kernel shows in sysfs; needs no RDMA library.

Layout: Documentation/ABI/stable/sysfs-class-infiniband of the Linux source.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarragon_hpc.config.schema import RdmaConfig

_WHERE = "/sys/class/infiniband"
_ROCE = "Ethernet"
_IB = "InfiniBand"
# A frame also carries up to 96 bytes of RoCE headers (iboe_get_mtu in the kernel's ib_addr.h).
_ROCE_HEADERS = 96
_MTUS = (4096, 2048, 1024, 512, 256)


@dataclass(frozen=True, slots=True)
class Gid:
    """One address of a port: index in its table, 128 bits as sysfs writes them, kind, netdev."""

    index: int
    address: str
    kind: str  # "IB/RoCE v1" or "RoCE v2"
    netdev: str | None

    @property
    def ipv4(self) -> str | None:
        """The IPv4 address that it stands for."""
        mapped = ipaddress.IPv6Address(self.address).ipv4_mapped
        return str(mapped) if mapped else None


@dataclass(frozen=True, slots=True)
class Port:
    """A port of an RDMA device, with the GID to use it by.

    `state` is the kernel's word (ACTIVE, DOWN, INIT, ARMED); `link_layer` InfiniBand, Ethernet
    (RoCE) or iWARP; `gid_index` and `gid` None if it has no GID; `mtu` bytes of one packet, None
    where only the device itself can tell (InfiniBand); `rate` Gb/s, None if not known; `blocked`
    why this process may not open the device, or nothing.
    """

    device: str
    port: int
    state: str
    link_layer: str
    gid_index: int | None
    gid: str | None
    lid: int
    mtu: int | None
    netdev: str | None
    rate: float | None = None
    gids: tuple[Gid, ...] = ()
    blocked: str = ""

    @property
    def why_not(self) -> str:
        """What keeps this port from being used, to be read after its name; empty if nothing."""
        if self.link_layer not in (_IB, _ROCE):
            return f"is {self.link_layer or 'of an unknown link layer'}, not InfiniBand or RoCE"
        if self.state != "ACTIVE":
            return f"is {self.state or 'in an unknown state'}"
        if self.gid is None:
            return "has no GID"
        return self.blocked

    @property
    def usable(self) -> bool:
        """Up, with an address, of a kind that has queue pairs, and open to this process."""
        return not self.why_not

    @property
    def fabric(self) -> str:
        """Ports of one fabric may reach each other: `ib:` and its subnet prefix, or `roce`."""
        if self.link_layer != _IB:
            return "roce"
        return f"ib:{int(ipaddress.IPv6Address(self.gid or '::')) >> 64:016x}"

    def __str__(self) -> str:
        return f"{self.device} port {self.port}"


def find_ports(sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[Port]:
    """Every port of every RDMA device, in order of name; what cannot be read is left out of it."""
    ports = []
    for device in sorted((sysfs / "class" / "infiniband").glob("*"), key=_natural):
        blocked = _blocked(sysfs, dev, device.name)
        for path in sorted((device / "ports").glob("*"), key=_natural):
            if path.name.isdecimal():
                ports.append(_read_port(sysfs, device, path, blocked))
    return ports


def choose_port(ports: list[Port], settings: RdmaConfig) -> Port | str:
    """The port to use, with its GID, or why there is none (naming the setting to blame)."""
    if settings.device is not None:
        devices = sorted({p.device for p in ports})
        ports = [p for p in ports if p.device == settings.device]
        if not ports:
            there = f"there are {', '.join(devices)}" if devices else f"{_WHERE} has none"
            return f"transport.rdma.device: {settings.device}: no such device; {there}"
    if not ports:
        return f"no RDMA device in {_WHERE}"
    if settings.port is not None:
        there = ", ".join(str(p) for p in ports)
        ports = [p for p in ports if p.port == settings.port]
        if not ports:
            return f"transport.rdma.port: {settings.port}: no such port; there are {there}"
    chosen = [_with_gid(p, settings.gid_index) for p in ports]
    usable = [p for p in chosen if isinstance(p, Port) and p.usable]
    if not usable:
        return "; ".join(p if isinstance(p, str) else f"{p} {p.why_not}" for p in chosen)
    return min(usable, key=lambda p: (p.link_layer != _IB, -(p.rate or 0.0)))


def _with_gid(port: Port, index: int | None) -> Port | str:
    """The port by the GID of that index; or why it has none."""
    if index is None:
        return port
    for gid in port.gids:
        if gid.index == index:
            return replace(port, gid_index=index, gid=gid.address, netdev=gid.netdev or port.netdev)
    there = ", ".join(str(gid.index) for gid in port.gids) or "none"
    return f"transport.rdma.gid_index: {index}: {port} has no GID there; it has {there}"


def _read_port(sysfs: Path, device: Path, path: Path, blocked: str) -> Port:
    link_layer = _text(path / "link_layer")
    if "RNIC" in _text(device / "node_type"):
        link_layer = "iWARP"
    gids = _read_gids(path)
    gid = _best(gids, link_layer)
    netdev = gid.netdev if gid else None
    rate = re.match(r"([\d.]+) Gb/sec", _text(path / "rate"))
    return Port(
        device=device.name,
        port=int(path.name),
        state=_text(path / "state").partition(":")[2].strip(),
        link_layer=link_layer,
        gid_index=gid.index if gid else None,
        gid=gid.address if gid else None,
        lid=_number(path / "lid", 16) or 0,
        mtu=_mtu(sysfs, netdev) if link_layer == _ROCE else None,
        netdev=netdev,
        rate=float(rate[1]) if rate else None,
        gids=gids,
        blocked=blocked,
    )


def _read_gids(path: Path) -> tuple[Gid, ...]:
    """The entries of a port's table that are in use: free ones are zero or cannot be read.

    A table may have 1,024 of them, all but a few of them free, which must not take long.
    """
    found = []
    for entry in (path / "gids").glob("*"):
        address = _text(entry)
        if entry.name.isdecimal() and address.strip("0:") and _is_gid(address):
            kind = _text(path / "gid_attrs" / "types" / entry.name)
            netdev = _text(path / "gid_attrs" / "ndevs" / entry.name) or None
            found.append(Gid(int(entry.name), address, kind, netdev))
    return tuple(sorted(found, key=lambda gid: gid.index))


def _is_gid(text: str) -> bool:
    """It is written as an address of IPv6."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _best(gids: tuple[Gid, ...], link_layer: str) -> Gid | None:
    """InfiniBand: the first. RoCE: v2 can be routed, and by IPv4 needs no IPv6 set up."""
    if link_layer == _IB:
        return gids[0] if gids and gids[0].index == 0 else None
    rank = {gid: ("v2" not in gid.kind, gid.ipv4 is None, gid.index) for gid in gids}
    return min(gids, key=lambda gid: rank[gid], default=None)


def _mtu(sysfs: Path, netdev: str | None) -> int | None:
    frame = _number(sysfs / "class" / "net" / netdev / "mtu", 10) if netdev else None
    return next((m for m in _MTUS if frame and m <= frame - _ROCE_HEADERS), None)


def _blocked(sysfs: Path, dev: Path, device: str) -> str:
    """A container may show a device in sysfs and not let it be opened."""
    for verbs in (sysfs / "class" / "infiniband_verbs").glob("*"):
        node = dev / "infiniband" / verbs.name
        if _text(verbs / "ibdev") == device and not os.access(node, os.R_OK | os.W_OK):
            return f"cannot be opened: no access to {node}"
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path, base: int) -> int | None:
    try:
        return int(_text(path), base)
    except ValueError:
        return None


def _natural(path: Path) -> tuple[str | int, ...]:
    """Sort key: mlx5_2 before mlx5_10."""
    return tuple(int(s) if s.isdecimal() else s for s in re.split(r"([0-9]+)", path.name))
