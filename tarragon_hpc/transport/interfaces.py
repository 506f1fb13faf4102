"""This node: which one it is, and its address for workers and head (`transport.interface`)."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = "127.0.0.1"
KEY = "transport.interface"

# netdevice(7); <linux/if.h>
_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_IFREQ = 40
_UP_AND_RUNNING = 0x1 | 0x40
_LINK_SCOPE = 0x20  # of /proc/net/if_inet6: such an address needs the name of its link beside it


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface. `addresses`: IPv4 first; without IPv6 ones that hold on one link only.

    up: it can send and receive
    """

    name: str
    addresses: tuple[str, ...]
    up: bool

    def __str__(self) -> str:
        told = [self.name, *(self.addresses or ["without an address"])]
        return " ".join(told if self.up else [*told, "(down)"])


def data_address(interface: str | None, head: str) -> str:
    """Where this node's listeners listen. `interface`: the setting; `head`: address of the head.

    Raises ConfigError naming the setting, or ClusterError if there is no way to the head.
    """
    if interface is not None:
        return resolve(interface, read_interfaces())
    return _source_address(head)


def resolve(setting: str, interfaces: Sequence[Interface]) -> str:
    """The address that a name, an address or a block of addresses stands for on this node.

    A block: the first address inside it, of an interface that is up. Raises ConfigError.
    """
    there = ", ".join(map(str, interfaces)) or "none at all"
    named = next((i for i in interfaces if i.name == setting), None)
    if named is not None:
        if not named.up:
            raise ConfigError(KEY, f"{setting}: is down on this node; there are {there}")
        if not named.addresses:
            raise ConfigError(KEY, f"{setting}: has no address on this node; there are {there}")
        return named.addresses[0]
    try:
        block = ipaddress.ip_network(setting, strict=False)
    except ValueError:
        raise ConfigError(
            KEY, f"{setting}: neither an interface, an address nor a block; there are {there}"
        ) from None
    for interface in interfaces:
        for address in interface.addresses:
            if interface.up and ipaddress.ip_address(address) in block:
                return address
    raise ConfigError(KEY, f"{setting}: no interface that is up has it; there are {there}")


def reachable_address(named: Sequence[str], interfaces: Sequence[Interface]) -> str:
    """An address of this node that others can reach, as far as one can tell from here: one that its
    host name stands for (`named`), else the first that is not for this node alone, else loopback.
    """
    own = [a for i in interfaces if i.up for a in i.addresses if not _is_loopback(a)]
    return next((a for a in named if a in own), own[0] if own else LOOPBACK)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def boot_id() -> str:
    """Names the running kernel: the same for all processes of a node until it is booted again,
    those in containers included.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_interfaces() -> list[Interface]:
    """All of this network namespace."""
    addresses: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for label, address in _ipv4(sock):
            # A further address may have a label of its own, such as eth0:1.
            addresses.setdefault(label.partition(":")[0], []).append(address)
        for name, address in _ipv6():
            addresses.setdefault(name, []).append(address)
        return [Interface(name, tuple(a), _is_up(sock, name)) for name, a in addresses.items()]


def _ipv4(sock: socket.socket) -> list[tuple[str, str]]:
    size = 64 * _IFREQ
    while True:
        buffer = array.array("B", bytes(size))
        request = struct.pack("iP", size, buffer.buffer_info()[0])
        used = struct.unpack("iP", fcntl.ioctl(sock, _SIOCGIFCONF, request))[0]
        if used < size:  # else there may be more
            break
        size *= 2
    entries = [bytes(buffer[i : i + _IFREQ]) for i in range(0, used, _IFREQ)]
    return [(e[:16].split(b"\0")[0].decode(), socket.inet_ntoa(e[20:24])) for e in entries]


def _ipv6() -> list[tuple[str, str]]:
    found = []
    with suppress(FileNotFoundError):  # a kernel without IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address, _, _, scope, _, name = line.split()
            if int(scope, 16) != _LINK_SCOPE:
                found.append((name, str(ipaddress.IPv6Address(int(address, 16)))))
    return found


def _is_up(sock: socket.socket, name: str) -> bool:
    request = struct.pack(f"16sh{_IFREQ - 18}x", name.encode(), 0)
    try:
        flags: int = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
    except OSError:
        return False  # it has gone meanwhile
    return flags & _UP_AND_RUNNING == _UP_AND_RUNNING


def _source_address(target: str) -> str:
    """The address that packets to another have as their sender. None is sent."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((target, 9))
        except OSError as error:
            raise ClusterError(f"no way to the head at {target}: {error.strerror}") from None
        name: str = sock.getsockname()[0]
        return name
