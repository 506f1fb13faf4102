"""What TCP links do beside what the conformance suite asks of every transport."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
import time

import numpy as np
import pytest

from tarragon_hpc import native
from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.tcp import TcpConnector, TcpListener
from tests.conformance.relay import Relay
from tests.unit.transport.tcp_ends import GEOMETRY, SECRET, SOON, until

pytestmark = pytest.mark.native


def pumps():
    """How many threads there are that move the bytes of links."""
    names = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append((task / "comm").read_text().strip())
    return names.count("tarragon-tcp")


def all_pumps_end():
    end = time.monotonic() + SOON
    while pumps():  # the kernel may list one for a moment after it was joined
        assert time.monotonic() < end
        time.sleep(0.01)


def join(listener, bells, geometry=GEOMETRY, port=None, silent_loss_s=3.0):
    address = listener.address() | ({"port": str(port)} if port else {})
    client = TcpConnector("aw0", 1, SECRET, bells[1], silent_loss_s=silent_loss_s).connect(
        "ew0", 1, address, geometry
    )
    return client, until(bells[0], listener.accepted)[0]


def test_one_thread_moves_the_bytes_of_all_links_as_long_as_there_are_any(tcp_listener, bells):
    all_pumps_end()
    for _ in range(2):
        pairs = [join(tcp_listener, bells) for _ in range(3)]
        assert pumps() == 1
        for client, server in pairs:
            client.close()
            server.close()
        all_pumps_end()


def test_posting_never_waits_for_a_peer_that_takes_nothing(bells):
    size = 16 << 20
    listener = TcpListener("127.0.0.1", "ew0", 1, SECRET, bells[0])
    relay = Relay("127.0.0.1", int(listener.address()["port"]))
    client, server = join(listener, bells, Geometry(4, size, 8), relay.port)
    data = [np.random.default_rng(n).bytes(size) for n in range(4)]
    for n in range(4):
        client.request(client.acquire())[:] = data[n]
    relay.silence()
    begin = time.monotonic()
    for n in range(4):
        client.post(n, size)
    assert time.monotonic() - begin < 0.5
    client.probe()
    time.sleep(0.1)
    assert server.poll() is None
    relay.heal()
    for n in range(4):
        assert until(bells[0], server.poll).data == data[n]
    until(bells[1], lambda: client.answered == 1)
    for end in (client, server, listener, relay):
        end.close()


def test_a_probe_is_answered_while_the_process_computes_with_the_gil(tcp_listener, bells):
    """Both ends are in this process, and nobody lets go of the GIL meanwhile."""
    client, server = join(tcp_listener, bells)
    client.probe()
    end = time.monotonic() + SOON
    while client.answered == 0 and time.monotonic() < end:
        sum(range(1000))
    assert client.answered == 1
    client.close()
    server.close()


@pytest.mark.parametrize("asks", [True, False])
def test_a_silent_peer_is_lost_after_the_time_that_was_set(tcp_listener, bells, asks):
    relay = Relay("127.0.0.1", int(tcp_listener.address()["port"]))
    client, server = join(tcp_listener, bells, port=relay.port, silent_loss_s=0.2)
    relay.silence()
    begin = time.monotonic()
    if asks:
        client.probe()
    until(bells[1], lambda: client.lost)
    seconds = time.monotonic() - begin
    assert client.lost.startswith("silent for 0.")
    assert 0.15 <= seconds < 2
    assert client.answered == 0
    for end in (client, server, relay):
        end.close()


def test_a_peer_that_says_something_now_and_then_is_not_lost(tcp_listener, bells):
    client, server = join(tcp_listener, bells, silent_loss_s=0.1)
    time.sleep(0.5)
    assert client.lost is None
    assert server.lost is None
    assert client.answered == 0  # it was asked, but not by `probe`
    client.close()
    server.close()


@pytest.mark.parametrize("held", [False, True])
def test_a_cut_link_is_seen_at_both_ends(tcp_listener, bells, held):
    relay = Relay("127.0.0.1", int(tcp_listener.address()["port"]))
    client, server = join(tcp_listener, bells, port=relay.port)
    if held:
        relay.silence()
        client.post(client.acquire(), 100)
        time.sleep(0.01)
    relay.cut()
    for bell, end in ((bells[1], client), (bells[0], server)):
        assert until(bell, lambda: end.lost) == "connection lost (Connection reset by peer)"  # noqa: B023
        end.close()
    relay.close()


def test_an_unreachable_host_is_a_failed_connect_in_time(bells):
    """Packets to this network (RFC 5737) are answered by nobody."""
    connector = TcpConnector("aw0", 1, SECRET, bells[1], timeout_s=0.3)
    begin = time.monotonic()
    with pytest.raises(ConnectFailed, match=r"^ew0\.1.*192\.0\.2\.1:9"):
        connector.connect("ew0", 1, {"kind": "tcp", "host": "192.0.2.1", "port": "9"}, GEOMETRY)
    assert time.monotonic() - begin < 2


def test_a_forked_child_has_no_part_in_a_link(tcp_listener, bells):
    client, server = join(tcp_listener, bells)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            client.close()
            server.close()
            del client, server
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    client.post(client.acquire(), 3)
    request = until(bells[0], server.poll)
    server.send(request.slot, 2)
    assert len(until(bells[1], lambda: client.reply(0))) == 2
    client.close()
    server.close()


def test_sockets_that_cannot_be_watched_are_an_oserror_and_closed(bells):
    n = native.module
    memory = np.zeros(n.ring_bytes(1, 64) + 64, np.uint8)
    ring = memory[-memory.ctypes.data % 64 :]
    link = n.TcpLink(ring, ring, 1, 64, 64, True, 1.0)
    slots = n.ServerSlots(ring, ring, 1, 64, 64, link)
    read, write = os.pipe()
    file = os.open("/dev/null", os.O_RDONLY)  # epoll takes no such thing
    with pytest.raises(OSError, match="not permitted"):
        link.start(read, file, slots, bells[0].native)
    del slots, link
    for fd in (read, file):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    os.close(write)
    all_pumps_end()


def test_the_floor_moves_all_bytes_and_ends_with_its_client():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as asks:
            serves = listening.accept()[0]
            thread = threading.Thread(
                target=native.module.tcp_pingpong_serve, args=(serves.fileno(),)
            )
            thread.start()
            for request, reply in ((1, 0), (100_000, 3), (0, 1 << 20)):
                times = native.module.tcp_pingpong_ask(asks.fileno(), request, reply, 5)
                assert len(times) == 5
                assert min(times) > 0
        thread.join(SOON)
        assert not thread.is_alive()
        with serves, pytest.raises(OSError, match="closed|Broken pipe|reset"):
            native.module.tcp_pingpong_ask(serves.fileno(), 1, 1, 2)


def test_the_end_of_a_message_comes_though_others_have_their_turn_before_it(bells):
    """Links take turns of 4 MiB: what is left then is little, and nothing comes after it."""
    size = 9 << 20
    listener = TcpListener("127.0.0.1", "ew0", 1, SECRET, bells[0])
    client, server = join(listener, bells, Geometry(4, size, size))
    for _ in range(25):
        for _ in range(4):
            client.post(client.acquire(), size)
        slots = [until(bells[0], server.poll).slot for _ in range(4)]
        for slot in slots:
            server.send(slot, size)
        for slot in slots:
            assert len(until(bells[1], lambda slot=slot: client.reply(slot))) == size
            client.release(slot)
    for end in (client, server, listener):
        end.close()
