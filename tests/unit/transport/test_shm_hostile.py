"""What a shared-memory listener does with peers that do not keep the rules."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import time

import msgspec
import pytest

from tarragon_hpc import native
from tarragon_hpc.errors import ConfigError, ConnectRefused
from tarragon_hpc.transport import blocking, handshake, memory, unix
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.wire import auth

pytestmark = pytest.mark.native

SECRET = b"s" * 32
GEOMETRY = Geometry(2, 256, 512)
SOON = 20.0


@pytest.fixture
def listener(tmp_path, bells):
    made = ShmListener(str(tmp_path / "run"), "ew0", 1, SECRET, bells[0], max_channel_bytes=1 << 20)
    yield made
    made.close()


def raw(listener):
    sock = unix.connect(listener.address()["path"], time.monotonic() + SOON)
    sock.settimeout(SOON)
    return sock


def good_client_works(listener, bells):
    client = ShmConnector("aw0", 1, SECRET, bells[1]).connect(
        "ew0", 1, listener.address(), GEOMETRY
    )
    deadline = time.monotonic() + SOON
    while not (joined := listener.accepted()):
        bells[0].wait(bells[0].value(), 0.01)
        assert time.monotonic() < deadline
    client.post(client.acquire(), 1)
    assert joined[0].poll() is not None
    client.close()
    joined[0].close()


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
def test_garbage_costs_its_sender_the_connection_and_nobody_else(listener, bells, garbage):
    with raw(listener) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    good_client_works(listener, bells)


def test_a_silent_client_blocks_nobody(listener, bells):
    with raw(listener), raw(listener):
        good_client_works(listener, bells)


def authenticated(listener):
    """A connection that knows the secret, about to send its join."""
    sock = raw(listener)
    shake = auth.ClientHandshake(SECRET, handshake.PURPOSE)
    deadline = time.monotonic() + SOON
    blocking.send_all(sock, shake.hello(), deadline)
    challenge = blocking.receive_exactly(sock, auth.CHALLENGE_BYTES, deadline)
    blocking.send_all(sock, shake.proof(challenge), deadline)
    assert blocking.receive_exactly(sock, 1, deadline) == auth.OK
    return sock


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        struct.pack("<I", 5) + b"\xc1" * 5,
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 1) + b"\x80",
        struct.pack("<I", 1000) + b"short",
    ],
    ids=range(5),
)
def test_garbage_after_the_secret_is_refused_too(listener, bells, frame):
    with authenticated(listener) as sock:
        sock.sendall(frame)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(4096) == b""
    good_client_works(listener, bells)


def join(**change):
    fields = {
        "worker": "aw0",
        "incarnation": 1,
        "peer": "ew0",
        "peer_incarnation": 1,
        "slots": 2,
        "request_bytes": 256,
        "reply_bytes": 512,
        "life": 0,
    }
    return msgspec.msgpack.encode(fields | change)


def refusal(listener, body, fds):
    with authenticated(listener) as sock:
        unix.send_frame(sock, body, fds, time.monotonic() + SOON)
        answer, got = unix.receive_frame(sock, 2, time.monotonic() + SOON)
        unix.close_all(got)
    return msgspec.msgpack.decode(answer)["refusal"]


@pytest.fixture
def offered(bells):
    """Descriptors that a good client of GEOMETRY would send."""
    fd, _ = memory.create_memory("ring", native.module.ring_bytes(2, 512))
    yield [fd, bells[1].fd]
    os.close(fd)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"slots": 0}, "allowed are 1 to 256"),
        ({"slots": 257}, "allowed are 1 to 256"),
        ({"slots": -1}, "allowed are 1 to 256"),
        ({"request_bytes": 0}, "must be positive"),
        ({"reply_bytes": -5}, "must be positive"),
        ({"request_bytes": 1 << 62}, "allowed are 1048576"),
        ({"reply_bytes": 1 << 20}, "allowed are 1048576"),
        ({"reply_bytes": 513}, "expected memory"),
        ({"peer_incarnation": 9}, "this is ew0.1"),
        ({"life": 256}, "sign of life 256; allowed are 0 to 255"),
        ({"life": -1}, "sign of life -1"),
    ],
)
def test_a_join_that_makes_no_sense_is_refused_with_the_reason(
    listener, bells, offered, change, why
):
    assert why in refusal(listener, join(**change), offered)
    good_client_works(listener, bells)


def test_descriptors_that_are_not_what_was_agreed_on_are_refused(listener, bells, offered):
    before = len(os.listdir("/proc/self/fd"))
    ring, bell = offered
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, native.module.ring_bytes(2, 512))
    pipe = os.pipe()
    assert "expected 2 descriptors, got 0" in refusal(listener, join(), [])
    assert "expected 2 descriptors, got 1" in refusal(listener, join(), [ring])
    assert "not sealed" in refusal(listener, join(), [unsealed, bell])
    assert "expected memory" in refusal(listener, join(), [bell, ring])
    assert "cannot be used" in refusal(listener, join(), [pipe[0], bell])
    with authenticated(listener) as sock:
        unix.send_frame(sock, join(), [ring, bell, pipe[0]], time.monotonic() + SOON)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(4096) == b""
    unix.close_all([unsealed, *pipe])
    good_client_works(listener, bells)
    listener.close()  # its handshakes are over then
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_client_does_not_trust_a_server_either(tmp_path, bells):
    path = str(tmp_path / "fake.sock")
    connector = ShmConnector("aw0", 1, SECRET, bells[1], timeout_s=0.2)
    # Never accepts. Not a reason to try another transport: the peer may only be stopped.
    with unix.listen(path), pytest.raises(ConnectRefused, match="ew0.1: "):
        connector.connect("ew0", 1, {"kind": "shm", "path": path}, GEOMETRY)


def pair(listener, bells):
    client = ShmConnector("aw0", 1, SECRET, bells[1]).connect(
        "ew0", 1, listener.address(), GEOMETRY
    )
    deadline = time.monotonic() + SOON
    while not (joined := listener.accepted()):
        bells[0].wait(bells[0].value(), 0.01)
        assert time.monotonic() < deadline
    return client, joined[0]


def claim(buffer, nbytes):
    """Write a length into the control line that lies before a slot's buffer."""
    ctypes.c_uint64.from_address(native.module.address_of(buffer) - 64 + 8).value = nbytes


def test_lengths_beyond_the_slot_cost_the_channel_not_the_process(listener, bells):
    client, server = pair(listener, bells)
    slot = client.acquire()
    client.post(slot, 1)
    claim(client.request(slot), 257)
    assert server.poll() is None
    assert server.lost == "posted 257 bytes into a slot of 256"
    client.close()


def test_a_reply_longer_than_its_slot_costs_the_channel(listener, bells):
    client, server = pair(listener, bells)
    slot = client.acquire()
    client.post(slot, 1)
    server.poll()
    server.send(slot, 1)
    claim(server.reply(slot), 2**63)
    assert client.reply(slot) is None
    assert client.lost == f"wrote a reply of {2**63} bytes into 512"
    server.close()


def test_garbage_on_a_joined_socket_is_a_loss(listener, bells):
    with authenticated(listener) as sock:
        fd, _ = memory.create_memory("ring", native.module.ring_bytes(2, 512))
        unix.send_frame(sock, join(), [fd, bells[1].fd], time.monotonic() + SOON)
        _, got = unix.receive_frame(sock, 2, time.monotonic() + SOON)
        unix.close_all([fd, *got])
        while not (joined := listener.accepted()):
            bells[0].wait(bells[0].value(), 0.01)
        sock.sendall(b"surprise")
        deadline = time.monotonic() + SOON
        while joined[0].lost is None and time.monotonic() < deadline:
            bells[0].wait(bells[0].value(), 0.01)
    assert joined[0].lost == "peer sent garbage"


def test_nothing_has_a_name_that_others_could_open(listener, bells, tmp_path):
    before = set(os.listdir("/dev/shm"))
    client, server = pair(listener, bells)
    assert set(os.listdir("/dev/shm")) == before
    directory = os.path.dirname(listener.address()["path"])
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert os.listdir(directory) == ["ew0.1.sock"]
    listener.close()
    assert os.listdir(directory) == []
    client.close()
    server.close()


def test_a_directory_that_others_could_enter_is_refused(tmp_path, bells):
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        ShmListener(str(tmp_path), "ew0", 1, SECRET, bells[0])


def test_deep_directories_work_although_socket_paths_are_short(tmp_path, bells):
    deep = tmp_path.joinpath(*["d" * 60] * 4)
    listener = ShmListener(str(deep), "ew0", 1, SECRET, bells[0])
    good_client_works(listener, bells)
    listener.close()


def test_the_socket_of_a_dead_predecessor_is_in_nobodys_way(tmp_path, bells):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "ew0.1.sock").write_text("left behind")
    listener = ShmListener(str(tmp_path / "run"), "ew0", 1, SECRET, bells[0])
    good_client_works(listener, bells)
    listener.close()
