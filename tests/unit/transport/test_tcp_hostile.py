"""What the ends of a TCP channel do with peers that do not keep the rules."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

import msgspec
import pytest

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport import net
from tarragon_hpc.transport.net_join import Session
from tarragon_hpc.transport.reception import MAX_JOINING
from tarragon_hpc.transport.tcp import TcpConnector
from tarragon_hpc.wire import auth
from tests.unit.transport.tcp_ends import (
    GEOMETRY,
    JOIN,
    SECRET,
    SOON,
    deadline,
    first,
    raw,
    second,
    until,
)

pytestmark = pytest.mark.native


def good_client_works(tcp_listener, bells):
    client = TcpConnector("aw0", 1, SECRET, bells[1]).connect(
        "ew0", 1, tcp_listener.address(), GEOMETRY
    )
    server = until(bells[0], tcp_listener.accepted)[0]
    client.post(client.acquire(), 1)
    assert until(bells[0], server.poll)
    client.close()
    server.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(auth.HELLO_BYTES),
        auth.MAGIC + bytes(31),
        auth.MAGIC + bytes(32) + bytes(32),
        os.urandom(100_000),
    ],
    ids=range(7),
)
def test_garbage_costs_its_sender_the_connection_and_nobody_else(tcp_listener, bells, garbage):
    with raw(tcp_listener) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    good_client_works(tcp_listener, bells)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        struct.pack("<I", 15) + bytes(15),
        struct.pack("<I", 100) + os.urandom(100),
        struct.pack("<I", 1000) + b"short",
    ],
    ids=range(4),
)
def test_garbage_after_the_secret_is_refused_too(tcp_listener, bells, frame):
    with raw(tcp_listener) as sock:
        Session.ask(sock, SECRET, deadline())
        with contextlib.suppress(OSError):  # it may be closed already
            sock.sendall(frame)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(4096) == b""
    good_client_works(tcp_listener, bells)


class Recorder:
    """A socket whose bytes out are kept."""

    def __init__(self, sock):
        self._sock = sock
        self.sent = []

    def sendall(self, data):
        self.sent.append(data)
        self._sock.sendall(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def test_a_recorded_handshake_opens_nothing(tcp_listener, bells):
    with raw(tcp_listener) as sock:
        recorder = Recorder(sock)
        Session.ask(recorder, SECRET, deadline()).join(JOIN, deadline())
    hello, proof, join = recorder.sent
    with raw(tcp_listener) as sock:
        sock.sendall(hello)
        sock.recv(4096)
        with contextlib.suppress(OSError):
            sock.sendall(proof + join)
            assert sock.recv(4096) == b""
    good_client_works(tcp_listener, bells)


def test_half_open_joins_block_nobody_and_end_with_the_listener(tcp_listener, bells):
    with raw(tcp_listener), first(tcp_listener)[0] as half, raw(tcp_listener) as shaken:
        Session.ask(shaken, SECRET, deadline())
        good_client_works(tcp_listener, bells)
        begin = time.monotonic()
        tcp_listener.close()
        assert time.monotonic() - begin < 5
        with contextlib.suppress(ConnectionResetError):
            assert half.recv(1) == b""


def test_as_many_clients_as_there_may_be_handshakes_can_join_at_once(tcp_listener, bells):
    halves = [
        first(tcp_listener, msgspec.structs.replace(JOIN, worker=f"aw{n}"))
        for n in range(MAX_JOINING)
    ]
    for n, (control, token) in enumerate(halves):
        second(tcp_listener, msgspec.structs.replace(JOIN, worker=f"aw{n}"), token).close()
        control.close()
    until(bells[0], lambda: not tcp_listener._reception._joining)
    servers = tcp_listener.accepted()
    assert len(servers) == MAX_JOINING
    for server in servers:
        server.close()


def test_a_token_opens_the_door_once(tcp_listener, bells):
    control, token = first(tcp_listener)
    with control, second(tcp_listener, JOIN, token):
        server = until(bells[0], tcp_listener.accepted)[0]
        with pytest.raises(ConnectFailed, match="no first connection waits for this one"):
            second(tcp_listener, JOIN, token)
        assert server.lost is None
        server.close()


def test_a_token_is_worth_nothing_without_its_first_connection(tcp_listener, bells):
    control, token = first(tcp_listener)
    control.close()
    end = time.monotonic() + SOON
    while tcp_listener._pairing._waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(ConnectFailed, match="no first connection"):
        second(tcp_listener, JOIN, token)
    good_client_works(tcp_listener, bells)


@pytest.mark.parametrize(
    "change", [{"worker": "aw1"}, {"incarnation": 2}, {"slots": 1}, {"request_bytes": 1 << 19}]
)
def test_a_token_is_for_the_client_that_got_it(tcp_listener, bells, change):
    control, token = first(tcp_listener)
    other = msgspec.structs.replace(JOIN, **change)
    with control:
        with pytest.raises(ConnectFailed, match="no first connection"):
            second(tcp_listener, other, token)
        with second(tcp_listener, JOIN, token):
            until(bells[0], tcp_listener.accepted)[0].close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "rdma"}, "no listener for rdma"),
        ({"kind": "tcp-data"}, "no first connection"),
        ({"peer": "ew1"}, r"this is ew0\.1, not ew1\.1"),
        ({"slots": 0}, "0 slots"),
        ({"slots": 1 << 40}, "slots; allowed are 1 to 256"),
        ({"reply_bytes": -1}, "both must be positive"),
        ({"reply_bytes": 1 << 40}, "allowed are 1048576"),
    ],
)
def test_bad_wishes_are_refused_with_the_reason(tcp_listener, bells, change, why):
    with raw(tcp_listener) as sock:
        session = Session.ask(sock, SECRET, deadline())
        with pytest.raises(ConnectFailed, match=why):
            session.join(msgspec.structs.replace(JOIN, **change), deadline())
    good_client_works(tcp_listener, bells)


def test_a_client_does_not_trust_a_server_either(bells):
    connector = TcpConnector("aw0", 1, SECRET, bells[1], timeout_s=0.2)
    with net.listen("127.0.0.1") as sock:  # never accepts
        port = str(sock.getsockname()[1])
        with pytest.raises(ConnectFailed, match=rf"ew0\.1: no answer from 127\.0\.0\.1:{port} wi"):
            connector.connect(
                "ew0", 1, {"kind": "tcp", "host": "127.0.0.1", "port": port}, GEOMETRY
            )


@pytest.mark.parametrize(
    "address",
    [
        {},
        {"kind": "shm", "path": "x"},
        {"kind": "tcp", "host": "127.0.0.1"},
        {"kind": "tcp", "host": "127.0.0.1", "port": "0"},
        {"kind": "tcp", "host": "127.0.0.1", "port": "65536"},
        {"kind": "tcp", "host": "", "port": "1"},
        {"kind": "tcp", "host": "no such host", "port": "1"},
    ],
)
def test_a_bad_address_is_a_failed_connect(bells, address):
    with pytest.raises(ConnectFailed, match="ew0"):
        TcpConnector("aw0", 1, SECRET, bells[1]).connect("ew0", 1, address, GEOMETRY)
