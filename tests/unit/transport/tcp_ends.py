"""Ends of TCP channels made by hand, for tests that break the rules."""

from __future__ import annotations

import time

from tarragon_hpc.transport import net, tcp_pairing
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.net_join import Join, Session

SECRET = b"s" * 32
GEOMETRY = Geometry(2, 256, 512)
SOON = 20.0
JOIN = Join("tcp", "aw0", 1, "ew0", 1, 2, 256, 512)


def until(bell, condition):
    end = time.monotonic() + SOON
    while not (value := condition()):
        assert time.monotonic() < end
        bell.wait(bell.value(), 0.01)
    return value


def deadline():
    return time.monotonic() + SOON


def raw(listener):
    address = listener.address()
    sock = net.connect(address["host"], int(address["port"]), deadline())
    sock.settimeout(SOON)
    return sock


def first(listener, join=JOIN):
    """A first connection that has its token."""
    sock = raw(listener)
    answer = Session.ask(sock, SECRET, deadline()).join(join, deadline())
    return sock, answer.offer["token"]


def second(listener, join, token):
    sock = raw(listener)
    try:
        Session.ask(sock, SECRET, deadline()).join(tcp_pairing.second_join(join, token), deadline())
    except BaseException:
        sock.close()
        raise
    return sock
