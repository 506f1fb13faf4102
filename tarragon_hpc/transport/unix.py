"""Unix stream sockets: private directories, deadlines for everything, descriptors as cargo."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.errors import ConfigError, ConnectFailed, FrameError
from tarragon_hpc.transport.blocking import arm, receive_exactly, send_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LENGTH = struct.Struct("<I")
_FD = array.array("i")
MAX_FRAME = 64 << 10


class Credentials(NamedTuple):
    """Who is at the other end, as the kernel says (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def private_directory(path: str) -> None:
    """Create the directory if need be; raises ConfigError if others could get in."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        info = os.stat(path)
    except OSError as error:
        raise ConfigError(path, f"cannot be used for sockets: {error.strerror}") from None
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(path, "must belong to you and have mode 0700")


@contextlib.contextmanager
def _short_path(path: str) -> Iterator[str]:
    """The same socket by a path that fits sun_path (108 bytes) however deep the directory is."""
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(path: str, backlog: int = 128) -> socket.socket:
    """A non-blocking listening socket; a leftover of a dead process at `path` is replaced.

    Only for paths that no living process can be using, such as one named by an incarnation.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(path) as short:
            sock.bind(short)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str, deadline: float) -> socket.socket:
    """Raises OSError (TimeoutError at the deadline, in time.monotonic() seconds)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        arm(sock, deadline)
        with _short_path(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


def credentials(sock: socket.socket) -> Credentials:
    """The peer's process and user at the time it connected (or listened)."""
    size = struct.calcsize("3i")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return Credentials(*struct.unpack("3i", data))


def check_same_user(sock: socket.socket) -> Credentials:
    """Raises ConnectFailed if the peer runs under another user id."""
    peer = credentials(sock)
    if peer.uid != os.geteuid():
        raise ConnectFailed(f"the peer runs under another user id ({peer.uid})")
    return peer


def send_frame(sock: socket.socket, body: bytes, fds: Sequence[int], deadline: float) -> None:
    """A length, a body, and descriptors that travel with the length's first byte."""
    arm(sock, deadline)
    frame = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(sock, [frame], list(fds)) if fds else 0
    if sent < len(frame):
        send_all(sock, frame[sent:], deadline)


def receive_frame(sock: socket.socket, max_fds: int, deadline: float) -> tuple[bytes, list[int]]:
    """The body and its descriptors, which the caller must close.

    Raises OSError or FrameError; descriptors that came until then are closed.
    """
    fds: list[int] = []
    try:
        head = b""
        while len(head) < _LENGTH.size:
            arm(sock, deadline)
            # Not socket.recv_fds, which drops the flags: the descriptors must not be inherited.
            piece, control, flags, _ = sock.recvmsg(
                _LENGTH.size - len(head),
                socket.CMSG_LEN(max_fds * _FD.itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
            for level, kind, data in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    whole = len(data) - len(data) % _FD.itemsize
                    fds += array.array("i", data[:whole])
            if not piece:
                raise FrameError("the peer closed the connection")
            if len(fds) > max_fds or flags & socket.MSG_CTRUNC:
                raise FrameError("the peer sent too many descriptors")
            head += piece
        size = _LENGTH.unpack(head)[0]
        if size > MAX_FRAME:
            raise FrameError(f"frame of {size} bytes is over the limit of {MAX_FRAME}")
        return receive_exactly(sock, size, deadline), fds
    except BaseException:
        close_all(fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
