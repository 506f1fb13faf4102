"""Network namespaces of this machine, as if they were hosts of a cluster; for benches and tests.

    head (this namespace) ── head@switch │ w0@switch ── eth0 (host 0)
                                 bridge  │ w1@switch ── eth0 (host 1)   …

The switch is a namespace of its own, so that no firewall of this machine has a say in what passes.
Faults are of a host's link to it. Nothing here closes a connection: like a pulled cable or a dead
port of a switch, a fault is only seen by what no longer arrives.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Literal, Self

from tarragon_hpc.errors import ClusterError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MARK = "tarragon-hosts"
_BLOCKS = ipaddress.IPv4Network("10.128.0.0/9")
_TABLE = "wires"
_GONE_S = 5.0

Direction = Literal["both", "in", "out"]


def why_not() -> str | None:
    """What is missing to make hosts here, or None."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} (packages iproute2, nftables)"
    return None if os.geteuid() == 0 else "needs root"


class Hosts:
    """One namespace for each name, joined by a switch, with an address each; removed at `close`.

    block: the addresses' network, as for `transport.interface`; head: this namespace's own address
    in it; switch: the namespace whose device `bridge` joins them. Raises UserError if this machine
    cannot (`why_not`), ClusterError if a command fails.
    What was left by a process that died without `close` is removed first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if (problem := why_not()) is not None:
            raise UserError(f"network namespaces: {problem}")
        _sweep()
        self._names = list(names)
        self.switch = _namespace("switch")
        self.block, addresses = _free_block()
        self.head = next(addresses)
        self._addresses = dict(zip(names, addresses, strict=False))
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Hosts({', '.join(self._names)} in {self.block})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def address(self, host: str) -> str:
        """The address of a host."""
        return self._addresses[host]

    def prefix(self, host: str) -> list[str]:
        """Words that run a command on a host, as for `cluster.prefix`."""
        return ["ip", "netns", "exec", _namespace(host)]

    # Faults.

    def cut(self, host: str) -> None:
        """Pull the cable: the host's carrier is gone."""
        _run("ip", "-n", self.switch, "link", "set", self._wire(host), "down")

    def silence(self, host: str, direction: Direction = "both") -> None:
        """Lose everything that comes `in` to a host, goes `out` of it, or both."""
        self._drop(host, direction, "drop")

    def lossy(self, host: str, percent: int) -> None:
        """Lose so many of a hundred packets, each way."""
        self._drop(host, "both", f"numgen random mod 100 < {percent} drop")

    def heal(self, host: str) -> None:
        """Undo all faults of a host."""
        for namespace, device in self._ends(host).values():
            _nft(namespace, f"flush chain netdev {_TABLE} {device}")
        _run("ip", "-n", self.switch, "link", "set", self._wire(host), "up")

    def close(self) -> None:
        """End every process on the hosts and remove them. Safe to call twice."""
        _remove(os.getpid())

    def _drop(self, host: str, direction: Direction, rule: str) -> None:
        for way, (namespace, device) in self._ends(host).items():
            if direction in (way, "both"):
                _nft(namespace, f"add rule netdev {_TABLE} {device} {rule}")

    def _ends(self, host: str) -> dict[str, tuple[str, str]]:
        """Where packets of each direction arrive: (namespace, device)."""
        return {"in": (_namespace(host), "eth0"), "out": (self.switch, self._wire(host))}

    def _wire(self, host: str) -> str:
        return f"w{self._names.index(host)}"

    def _build(self) -> None:
        mask = self.block.partition("/")[2]
        _run("ip", "netns", "add", self.switch)
        on_switch = ["ip", "-n", self.switch, "link"]
        _run(*on_switch, "add", "bridge", "type", "bridge", "forward_delay", "0")
        _run(*on_switch, "set", "bridge", "up")
        uplink, here = _uplink(os.getpid()), str(os.getpid())
        _run(*on_switch, "add", "head", "type", "veth", "peer", "name", uplink, "netns", here)
        _run(*on_switch, "set", "head", "master", "bridge", "up")
        _run("ip", "address", "add", f"{self.head}/{mask}", "dev", uplink)
        _run("ip", "link", "set", uplink, "up")
        for name in self._names:
            wire, host = self._wire(name), _namespace(name)
            _run("ip", "netns", "add", host)
            _run("ip", "-n", host, "link", "set", "lo", "up")
            _run(*on_switch, "add", wire, "type", "veth", "peer", "name", "eth0", "netns", host)
            _run(*on_switch, "set", wire, "master", "bridge", "up")
            address = f"{self._addresses[name]}/{mask}"
            _run("ip", "-n", host, "address", "add", address, "dev", "eth0")
            _run("ip", "-n", host, "link", "set", "eth0", "up")
            for namespace, device in self._ends(name).values():
                hook = f"type filter hook ingress device {device} priority 0"
                _nft(
                    namespace,
                    f"add table netdev {_TABLE}; add chain netdev {_TABLE} {device} {{ {hook}; }}",
                )


def _namespace(host: str) -> str:
    return f"{_MARK}-{os.getpid()}-{host}"


def _uplink(pid: int) -> str:
    return f"tg{pid}"


def _namespaces() -> list[tuple[int, str]]:
    """(the process that made it, its name)"""
    found = re.findall(rf"^({_MARK}-(\d+)-\S+)", _run("ip", "netns", "list"), re.MULTILINE)
    return [(int(pid), name) for name, pid in found]


def _sweep() -> None:
    """Remove what processes that are gone have left."""
    for maker in {pid for pid, _ in _namespaces()}:
        if not os.path.exists(f"/proc/{maker}"):
            with contextlib.suppress(ClusterError):  # another process sweeps as well
                _remove(maker)


def _remove(maker: int) -> None:
    """End what runs in the namespaces that a process has made, and remove them."""
    if os.path.exists(f"/sys/class/net/{_uplink(maker)}"):
        _run("ip", "link", "delete", _uplink(maker))
    for namespace in [name for pid, name in _namespaces() if pid == maker]:
        end = time.monotonic() + _GONE_S
        while (pids := _run("ip", "netns", "pids", namespace).split()) and time.monotonic() < end:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
        _run("ip", "netns", "delete", namespace)


def _free_block() -> tuple[str, Iterator[str]]:
    """A network that this machine has no route to yet, and its addresses."""
    routes = _run("ip", "-4", "-o", "route", "show", "table", "all")
    words = re.findall(r"\b\d+\.\d+\.\d+\.\d+(?:/\d+)?", routes)
    used = [ipaddress.IPv4Network(word, strict=False) for word in words]
    blocks = list(_BLOCKS.subnets(new_prefix=24))
    first = os.getpid() % len(blocks)
    for block in (*blocks[first:], *blocks[:first]):
        if not any(block.overlaps(other) for other in used if other.prefixlen):
            return str(block), map(str, block.hosts())
    raise ClusterError(f"no free network in {_BLOCKS}")


def _nft(namespace: str, commands: str) -> None:
    _run("ip", "netns", "exec", namespace, "nft", commands)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        why = done.stderr.strip() or f"exit status {done.returncode}"
        raise ClusterError(f"{' '.join(command)}: {why}")
    return done.stdout
