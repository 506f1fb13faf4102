"""What a client of the data plane says to join, before and after the challenge."""

from __future__ import annotations

import socket
import time

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.transport import handshake, net, net_join, shm_join, unix
from tarragon_hpc.transport.admission import geometry_refusal
from tarragon_hpc.wire import auth
from tests.fuzz.target import Family

family = Family()
KEY = bytes(32)
JOIN = ("aw0", 1, "ew0", 1, 2, 256, 512)


def _deadline():
    return time.monotonic() + 5.0


class _Said:
    """A socket from which some bytes can be read, and then the end."""

    def __init__(self, data):
        self.near, far = socket.socketpair()
        with far:
            # In pieces: more than a socket holds cannot be read before it is written.
            far.setblocking(False)
            far.send(data[: 64 << 10]) if data else None

    def __enter__(self):
        return self.near

    def __exit__(self, *_):
        self.near.close()


def _strangers():
    return [auth.MAGIC + bytes(auth.NONCE + auth.PROOF_BYTES), b"GET / HTTP/1.1\r\n\r\n"]


@family.add(_strangers, AuthError, FrameError, OSError)
def join_challenge(data):
    with _Said(data) as sock:
        handshake.hear(sock, KEY, _deadline())
    raise AssertionError("a stranger was let in")


def _shm_joins():
    body = msgspec.msgpack.encode(shm_join.Join(*JOIN, life=3))
    return [len(body).to_bytes(4, "little") + body]


@family.add(_shm_joins, FrameError, OSError)
def join_shm(data):
    with _Said(data) as sock:
        body, fds = unix.receive_frame(sock, 2, _deadline())
    assert fds == []
    join = handshake.decode(body, shm_join.Join)
    shm_join.joint_refusal(join.life, [0, 1])
    _fits(join.geometry)


def _net_joins():
    join = net_join.Join("tcp", *JOIN, offer={"token": "x"})
    answer = net_join.Answer("no", {"token": "x"})
    return [b"\x01" + msgspec.msgpack.encode(m) for m in (join, answer)] + [b"\x00\x20" + bytes(35)]


@family.add(_net_joins, FrameError, AuthError, OSError, ConnectFailed)
def join_net(data):
    """Sealed by who knows the key (first byte odd), or by nobody."""
    body = data[1:]
    if sealed := bool(data and data[0] & 1):
        body = AESGCM(KEY).encrypt(net_join._nonce(b"cs", 1), body, None)
        body = len(body).to_bytes(4, "little") + body
    with _Said(body) as sock:
        join = net_join.Session(sock, KEY, client=False).joining(_deadline())
        assert sealed, "what nobody sealed was taken"
    _fits(join.geometry)


def _fits(geometry):
    limit = 1 << 20
    if geometry_refusal(geometry, limit) is None:
        assert 0 < geometry.slots * (geometry.request_bytes + geometry.reply_bytes) <= limit


def _addresses():
    texts = [{"kind": "tcp", "host": "::1", "port": "70"}, {"kind": "shm", "path": "/x"}]
    return [msgspec.json.encode(t) for t in texts]


@family.add(_addresses, ConnectFailed, msgspec.DecodeError, UnicodeDecodeError)
def address(data):
    _, port = net.host_and_port("ew0", msgspec.json.decode(data, type=dict[str, str]))
    assert 0 < port < 65536
