"""Handshakes of the data plane that somebody recorded, reflects, or never ends."""

from __future__ import annotations

import socket
import threading
import time

import msgspec
import pytest

from tarragon_hpc.errors import AuthError, FrameError, TarragonError
from tarragon_hpc.transport import handshake, net_join, reception, unix
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.wire import auth

SECRET = b"s" * 32
SOON = 20.0


def deadline():
    return time.monotonic() + SOON


class Server:
    """Answers one connection with `serve`; `error`: how that ended."""

    def __init__(self, serve):
        self.near, self._far = socket.socketpair()
        self.error = None
        self._serve = serve
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            with self._far:
                self._serve(self._far)
        except (OSError, TarragonError) as error:
            self.error = error

    def end(self):
        self._thread.join(SOON)
        self.near.close()
        return self.error


class Recorder:
    """A socket that remembers what was sent through it."""

    def __init__(self, sock):
        self._sock = sock
        self.tape = b""

    def sendall(self, data):
        self.tape += data
        self._sock.sendall(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def join_once(sock):
    session = net_join.Session.hear(sock, SECRET, deadline())
    session.joining(deadline())
    session.reply(net_join.Answer(), deadline())


JOIN = net_join.Join("tcp", "aw0", 1, "ew0", 1, 2, 256, 512, {"token": "x"})


def recorded():
    server = Server(join_once)
    sock = Recorder(server.near)
    net_join.Session.ask(sock, SECRET, deadline()).join(JOIN, deadline())
    assert server.end() is None
    return sock.tape


def test_a_recorded_join_opens_nothing():
    server = Server(join_once)
    server.near.sendall(recorded())
    assert isinstance(server.end(), AuthError)


def test_a_recorded_message_is_not_taken_in_another_session():
    sealed = recorded()[auth.HELLO_BYTES + auth.PROOF_BYTES :]
    server = Server(join_once)
    handshake.ask(server.near, SECRET, deadline())
    server.near.sendall(sealed)
    assert isinstance(server.end(), AuthError)


def test_a_message_is_not_taken_twice():
    def join_twice(sock):
        session = net_join.Session.hear(sock, SECRET, deadline())
        session.joining(deadline())
        session.joining(deadline())

    server = Server(join_twice)
    sock = Recorder(server.near)
    key = handshake.ask(sock, SECRET, deadline())
    start = len(sock.tape)
    net_join.Session(sock, key, client=True)._send(msgspec.msgpack.encode(JOIN), deadline())
    sock.sendall(sock.tape[start:])
    assert isinstance(server.end(), AuthError)


def test_a_reflected_challenge_opens_nothing():
    """Whoever does not know the secret has our own words as an answer at most."""

    def reflect(sock):
        hello = sock.recv(auth.HELLO_BYTES)
        sock.sendall(hello[len(auth.MAGIC) :] + bytes(auth.MAC))
        sock.recv(1)

    server = Server(reflect)
    with pytest.raises(AuthError, match="does not know"):
        handshake.ask(server.near, SECRET, deadline())
    server.near.close()
    server.end()


def test_a_control_handshake_opens_no_data_channel():
    server = Server(join_once)
    shake = auth.ClientHandshake(SECRET, b"control")
    server.near.sendall(shake.hello())
    challenge = server.near.recv(auth.CHALLENGE_BYTES)
    with pytest.raises(AuthError):
        shake.proof(challenge)
    server.near.close()
    assert isinstance(server.end(), FrameError | OSError)


@pytest.mark.native
def test_half_open_joins_in_any_number_keep_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr(reception, "MAX_JOINING", 8)
    bells = [ProcessDoorbell(), ProcessDoorbell()]
    listener = ShmListener(str(tmp_path / "run"), "ew0", 1, SECRET, bells[0])
    path = listener.address()["path"]
    flood = []
    for _ in range(40):
        flood.append(unix.connect(path, deadline()))
        time.sleep(0.005)
    flood[-1].sendall(auth.MAGIC)
    connector = ShmConnector("aw0", 1, SECRET, bells[1])
    client = connector.connect("ew0", 1, listener.address(), Geometry(2, 256, 512))
    assert len(listener._reception._joining) <= 2 * 8
    flood[0].settimeout(SOON)
    assert flood[0].recv(1) == b""
    client.close()
    listener.close()
    for sock in flood:
        sock.close()
    for bell in bells:
        bell.close()
