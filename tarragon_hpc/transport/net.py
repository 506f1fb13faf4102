"""TCP sockets of the data plane."""

from __future__ import annotations

import socket

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.blocking import arm


def listen(host: str, port: int = 0, backlog: int = 128) -> socket.socket:
    """A listening socket on an address of this machine; port 0: any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(host: str, port: int, deadline: float) -> socket.socket:
    """Raises OSError (TimeoutError at the deadline, in time.monotonic() seconds)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        arm(sock, deadline)
        sock.connect((host, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def host_and_port(peer: str, address: dict[str, str]) -> tuple[str, int]:
    """Of a listener, from its address. Raises ConnectFailed if that is not there."""
    host, port = address.get("host", ""), address.get("port", "")
    plain = port.isascii() and port.isdecimal() and len(port) <= 5
    if not host or not plain or not 0 < int(port) < 65536:
        raise ConnectFailed(f"{peer}: {address} names no host and port")
    return host, int(port)


def silent_loss_after(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give a connection up that has heard nothing for so long (tcp(7)).

    Keepalive probes find it while nothing is sent, TCP_USER_TIMEOUT while something is.
    """
    beats = 3
    interval = max(1, round(seconds / (beats + 1)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, beats)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
