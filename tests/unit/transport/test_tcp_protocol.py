"""What the ends of a TCP channel take from each other, once they have met."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

from tarragon_hpc.transport import net
from tarragon_hpc.transport.net_join import Answer, Session
from tarragon_hpc.transport.tcp import TcpConnector
from tests.unit.transport.tcp_ends import (
    GEOMETRY,
    JOIN,
    SECRET,
    SOON,
    deadline,
    first,
    second,
    until,
)

pytestmark = pytest.mark.native

REQUEST, REPLY = 0x51525454, 0x50525454
BYE, PROBE, ALIVE = b"\x00", b"\x01", b"\x02"


@pytest.fixture
def joined(tcp_listener, bells):
    """A client's sockets, data and control, and the server's channel."""
    control, token = first(tcp_listener)
    with control, second(tcp_listener, JOIN, token) as data:
        server = until(bells[0], tcp_listener.accepted)[0]
        yield data, control, server
        server.close()


def message(kind, slot, sequence, nbytes, body=b""):
    return struct.pack("<IIQQ", kind, slot, sequence, nbytes) + body


def reason(bell, channel):
    return until(bell, lambda: channel.lost)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (message(REPLY, 0, 1, 0), "not a request"),
        (b"GET / HTTP/1.1\r\nHost: me", "not a request"),
        (message(REQUEST, 2, 1, 0), "request in slot 2 of 2"),
        (message(REQUEST, 2**32 - 1, 1, 0), "request in slot 4294967295 of 2"),
        (message(REQUEST, 0, 1, 257), "request of 257 bytes in a slot of 256"),
        (message(REQUEST, 0, 1, 2**64 - 1), f"request of {2**64 - 1} bytes in a slot of 256"),
        (message(REQUEST, 0, 0, 0), "request 0 after 0"),
        (message(REQUEST, 0, 3, 0), "request 3 after 0"),
        (message(REQUEST, 1, 1, 0), "request 1 in slot 1"),
        (message(REQUEST, 0, 1, 0) * 2, "request 1 after 1"),
        (
            message(REQUEST, 0, 1, 1, b"a") + message(REQUEST, 1, 2, 0) + message(REQUEST, 0, 3, 0),
            "request 3 in slot 0, which still owes a reply",
        ),
    ],
)
def test_a_client_that_breaks_the_protocol_is_cut_off(joined, bells, sent, why):
    data, control, server = joined
    data.sendall(sent)
    assert reason(bells[0], server) == f"peer broke the protocol: {why}"
    assert control.recv(1) == BYE
    assert server.poll() is None


def test_a_request_may_come_byte_by_byte(joined, bells):
    data, _, server = joined
    for byte in message(REQUEST, 0, 1, 3, b"abc"):
        assert server.poll() is None
        data.sendall(bytes([byte]))
        time.sleep(0.001)
    request = until(bells[0], server.poll)
    assert (request.slot, bytes(request.data)) == (0, b"abc")


def test_half_a_request_is_none(joined, bells):
    data, control, server = joined
    data.sendall(message(REQUEST, 0, 1, 3, b"ab"))
    data.close()
    control.close()
    assert reason(bells[0], server) == "process gone (connection closed)"
    assert server.poll() is None


def test_one_connection_alone_is_not_enough(joined, bells):
    data, _, server = joined
    data.close()
    assert reason(bells[0], server) == "process gone (connection closed)"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (ALIVE, "an answer to no probe"),
        (b"surprise", "garbage on the control connection"),
        (PROBE + b"\xff", "garbage on the control connection"),
    ],
)
def test_garbage_on_the_control_connection_is_a_loss(joined, bells, sent, why):
    _, control, server = joined
    control.sendall(sent)
    assert reason(bells[0], server) == f"peer broke the protocol: {why}"


def test_many_probes_are_all_answered_by_the_end_that_did_not_ask(joined):
    _, control, server = joined
    control.sendall(PROBE * 10_000)
    answers = b""
    while len(answers) < 10_000:
        answers += control.recv(4096)
    assert answers == ALIVE * 10_000
    assert server.lost is None


@pytest.fixture
def fake(bells):
    """A client, and the sockets of a server that keeps no rules."""
    with net.listen("127.0.0.1") as sock:
        sockets = []

        def serve():
            for answer in (Answer(offer={"token": "t"}), Answer()):
                sockets.append(sock.accept()[0])
                session = Session.hear(sockets[-1], SECRET, deadline())
                session.joining(deadline())
                session.reply(answer, deadline())
                sockets[-1].settimeout(SOON)
                sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        thread = threading.Thread(target=serve)
        thread.start()
        address = {"kind": "tcp", "host": "127.0.0.1", "port": str(sock.getsockname()[1])}
        client = TcpConnector("aw0", 1, SECRET, bells[1]).connect("ew0", 1, address, GEOMETRY)
        thread.join()
        control, data = sockets
        with control, data:
            yield client, data, control
            client.close()


def posted(client, data, count):
    """So many empty requests, read at the other end."""
    for _ in range(count):
        client.post(client.acquire(), 0)
    for n in range(count):
        assert data.recv(24, socket.MSG_WAITALL) == message(REQUEST, n % 2, n + 1, 0)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (message(REQUEST, 0, 1, 0), "not a reply"),
        (message(REPLY, 2, 1, 0), "reply in slot 2 of 2"),
        (message(REPLY, 0, 1, 513), "reply of 513 bytes in a slot of 512"),
        (
            message(REPLY, 1, 2, 0),
            "reply to request 2 in slot 1, which has not been posted there",
        ),
        (
            message(REPLY, 1, 1, 0),
            "reply to request 1 in slot 1, which has not been posted there",
        ),
        (
            message(REPLY, 0, 3, 0),
            "reply to request 3 in slot 0, which has not been posted there",
        ),
        (
            message(REPLY, 0, 1, 1, b"x") + message(REPLY, 0, 1, 1, b"y"),
            "second reply to request 1",
        ),
    ],
)
def test_a_server_that_breaks_the_protocol_is_cut_off(fake, bells, sent, why):
    client, data, _ = fake
    posted(client, data, 1)
    data.sendall(sent)
    assert reason(bells[1], client) == f"peer broke the protocol: {why}"


def test_a_second_reply_does_not_change_the_first(fake, bells):
    client, data, _ = fake
    posted(client, data, 2)
    data.sendall(message(REPLY, 0, 1, 1, b"x") + message(REPLY, 0, 1, 1, b"y"))
    reason(bells[1], client)
    assert bytes(client.reply(0)) == b"x"
    assert client.reply(1) is None


def test_a_farewell_does_not_overtake_a_reply(fake, bells):
    client, data, control = fake
    posted(client, data, 1)
    control.sendall(BYE)
    time.sleep(0.005)
    data.sendall(message(REPLY, 0, 1, 1, b"x"))
    data.close()
    assert reason(bells[1], client) == "closed by peer"
    assert bytes(client.reply(0)) == b"x"


def test_an_answer_to_no_probe_is_a_loss(fake, bells):
    client, _, control = fake
    client.probe()
    assert control.recv(1) == PROBE
    control.sendall(ALIVE)
    until(bells[1], lambda: client.answered == 1)
    control.sendall(ALIVE)
    assert reason(bells[1], client) == "peer broke the protocol: an answer to no probe"
