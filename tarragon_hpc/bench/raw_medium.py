"""The floor under the datapath: the same bytes there and back, with nothing around them.

One floor per transport, between the same two processes as the datapath itself where the medium is
this package's to drive: shared memory and TCP, in C++. Where it is not, a tool measures it.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.bench import perftools
from tarragon_hpc.transport.memory import create_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from tarragon_hpc.transport.rdma_ports import Port

HOST = "127.0.0.1"


class Floor(Protocol):
    """What the datapath is compared with.

    said: what it is, in words
    options: for `serve` in the other process, which inherits `fds`
    """

    said: str
    options: dict[str, Any]
    fds: Sequence[int]

    def begin(self, request_bytes: int, reply_bytes: int, calls: int) -> None:
        """Round trips of this size from now on, so many in a turn; the other process is there."""

    def turn(self) -> None:
        """Measure once more."""

    def percentiles(self) -> dict[str, float]:
        """Microseconds of a round trip since `begin`: p50 and p99."""


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"p50": float(p50), "p99": float(p99)}


class _PingPong:
    """A floor in C++."""

    fds: Sequence[int] = ()

    def begin(self, request_bytes: int, reply_bytes: int, calls: int) -> None:
        self._size = request_bytes, reply_bytes, calls
        self._times: list[int] = []
        self._ask(*self._size)  # warms up

    def turn(self) -> None:
        self._times += self._ask(*self._size)

    def percentiles(self) -> dict[str, float]:
        return percentiles(self._times)

    def _ask(self, request_bytes: int, reply_bytes: int, calls: int) -> list[int]:
        raise NotImplementedError


class ShmFloor(_PingPong):
    """Each side copies in and copies out, and waits as the doorbell does."""

    said = "C++ ping-pong through shared memory"

    def __init__(self, stack: ExitStack, most: tuple[int, int], spin_us: int) -> None:
        size = native.module.pingpong_bytes(*most)
        fd, self._memory = create_memory("tarragon-raw", size)
        stack.callback(os.close, fd)
        self._spin_us = spin_us
        self.fds = [fd]
        self.options = {"fd": fd, "bytes": size, "spin_us": spin_us}

    def _ask(self, request_bytes: int, reply_bytes: int, calls: int) -> list[int]:
        return native.module.pingpong_ask(
            self._memory, request_bytes, reply_bytes, calls, self._spin_us
        )


class TcpFloor(_PingPong):
    """Blocking calls on one connection."""

    said = "blocking C++ ping-pong over TCP"

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server((HOST, 0)))
        self._socket: socket.socket | None = None
        self.options = {"port": self._listener.getsockname()[1]}

    def _ask(self, request_bytes: int, reply_bytes: int, calls: int) -> list[int]:
        if self._socket is None:
            self._socket = self._stack.enter_context(self._listener.accept()[0])
            self._socket.setblocking(True)
        return native.module.tcp_pingpong_ask(
            self._socket.fileno(), request_bytes, reply_bytes, calls
        )


class RdmaFloor:
    """What `ib_write_lat` says, once for each size: it brings both its ends."""

    said = "ib_write_lat"
    fds: Sequence[int] = ()

    def __init__(self, port: Port, cpus: tuple[int, int] | None) -> None:
        self._port = port
        self._cpus = cpus
        self.options: dict[str, Any] = {}

    def begin(self, request_bytes: int, reply_bytes: int, calls: int) -> None:
        self._found = perftools.write_latency(
            self._port, (request_bytes + reply_bytes) // 2, 5 * calls, self._cpus
        )

    def turn(self) -> None:
        pass

    def percentiles(self) -> dict[str, float]:
        return self._found


def make_floor(
    kind: str,
    stack: ExitStack,
    *,
    most: tuple[int, int],
    spin_us: int,
    port: Port | None,
    cpus: tuple[int, int] | None,
) -> Floor:
    """The floor of a transport.

    stack: what it holds until the end; most: bytes of the largest request and reply; port: for rdma
    """
    if kind == "shm":
        return ShmFloor(stack, most, spin_us)
    if kind == "tcp":
        return TcpFloor(stack)
    assert port is not None
    return RdmaFloor(port, cpus)


def serve(options: dict[str, Any]) -> Callable[[], None]:
    """Answer a floor, by its options, in a thread; returns what ends that."""
    if "fd" in options:
        memory = native.module.map_shared(options["fd"], options["bytes"])
        _in_thread(native.module.pingpong_serve, memory, options["spin_us"])
        return lambda: native.module.pingpong_stop(memory)
    if "port" in options:
        sock = socket.create_connection((HOST, options["port"]))
        _in_thread(native.module.tcp_pingpong_serve, sock.fileno())
        return lambda: sock.shutdown(socket.SHUT_RDWR)
    return lambda: None


def _in_thread(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, name="raw", daemon=True).start()
