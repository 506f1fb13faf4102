"""Same-node transport: one-sided writes into the peer's memory, a futex as doorbell.

`shm_join.py` is how two processes meet, `shm_channel.py` what they have then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import AuthError, ConnectFailed, FrameError
from tarragon_hpc.transport import memory, shm_join, unix
from tarragon_hpc.transport.admission import Admission
from tarragon_hpc.transport.monitor import Monitor
from tarragon_hpc.transport.shm_channel import ShmClientChannel, ShmDoorbell, ShmServerChannel

if TYPE_CHECKING:
    from tarragon_hpc.transport.base import Geometry, ServerChannel

__all__ = ["ShmConnector", "ShmDoorbell", "ShmListener"]

HANDSHAKE_S = 10.0
MAX_JOINING = 64

log = logging.getLogger(__name__)


class ShmListener:
    """See `base.Listener`.

    runtime_dir: directory on this node, mode 0700, made if it is missing
    bell: the server's doorbell, rung by all its clients
    max_channel_bytes: largest memory of one channel, both rings
    """

    def __init__(
        self,
        runtime_dir: str,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ShmDoorbell,
        *,
        max_channel_bytes: int = 8 << 30,
    ) -> None:
        memory.require_native()
        unix.private_directory(runtime_dir)
        self.worker = worker
        self.incarnation = incarnation
        self._secret = secret
        self._bell = bell
        self._max_bytes = max_channel_bytes
        self._monitor = Monitor(f"shm-{worker}")
        self._lock = threading.Lock()
        self._admission: Admission[ShmServerChannel] = Admission(worker, incarnation)
        self._accepted: list[ServerChannel] = []
        # Handshakes under way; no socket any more once it is a channel's.
        self._joining: dict[threading.Thread, socket.socket | None] = {}
        self._closed = False
        self._path = os.path.join(os.path.abspath(runtime_dir), f"{worker}.{incarnation}.sock")
        self._socket = unix.listen(self._path)
        self._monitor.watch(self._socket.fileno(), self._on_connection)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"ShmListener({self.worker}.{self.incarnation}, {state})"

    def address(self) -> dict[str, str]:
        return {"kind": "shm", "path": self._path}

    def accepted(self) -> list[ServerChannel]:
        if not self._accepted:  # asked in every round of the expert loop
            return []
        with self._lock:
            joined, self._accepted = self._accepted, []
        return joined

    def close(self) -> None:
        """Stop accepting; channels live on, those not yet fetched by `accepted` are closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            joining = dict(self._joining)
        self._monitor.forget(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for thread, sock in joining.items():
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread.join()
        for channel in self.accepted():
            channel.close()

    def _on_connection(self) -> None:
        """In the monitor's thread. A handshake blocks, so each gets a thread of its own."""
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return  # the client has gone again, or this listener has
        with self._lock:
            if self._closed or len(self._joining) >= MAX_JOINING:
                sock.close()
                return
            thread = threading.Thread(
                target=self._join, args=(sock,), name=f"shm-{self.worker}-join", daemon=True
            )
            self._joining[thread] = sock
            thread.start()

    def _join(self, sock: socket.socket) -> None:
        deadline = time.monotonic() + HANDSHAKE_S
        try:
            join, fds = shm_join.hear(sock, self._secret, deadline)
            try:
                self._admit(sock, join, fds, deadline)
            except ConnectFailed as refusal:
                shm_join.reply(sock, shm_join.Answer(str(refusal)), [], deadline)
                raise
            finally:
                unix.close_all(fds)
        except (OSError, FrameError, AuthError, ConnectFailed) as error:
            log.warning("%s refused a connection: %s", self.worker, error)
            sock.close()
        finally:
            with self._lock:
                self._joining.pop(threading.current_thread(), None)

    def _admit(
        self, sock: socket.socket, join: shm_join.Join, fds: list[int], deadline: float
    ) -> None:
        """Make the channel and tell both sides; adds to `fds` what the caller closes."""
        refusal = (
            self._refusal(join)
            or shm_join.geometry_refusal(join.geometry, self._max_bytes)
            or shm_join.joint_refusal(join.life, fds)
        )
        if refusal is not None:
            raise ConnectFailed(refusal)
        g = join.geometry
        replies = memory.adopt_memory(fds[0], native.module.ring_bytes(g.slots, g.reply_bytes))
        peer_bell = memory.adopt_memory(fds[1], native.module.BELL_BYTES)
        fd, requests = memory.create_memory(
            f"tarragon-{self.worker}", native.module.ring_bytes(g.slots, g.request_bytes)
        )
        fds.append(fd)
        channel = ShmServerChannel(
            join.worker,
            join.incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            peer_bell=peer_bell,
        )
        with self._lock:
            refusal = "the listener is closed" if self._closed else self._refusal(join)
            if refusal is not None:
                raise ConnectFailed(refusal)
            with self._bell.life() as life:
                answer = shm_join.Answer(life=life)
                shm_join.reply(sock, answer, [fd, self._bell.fd], deadline)
                channel.start(sock, self._monitor, life, join.life)
            self._joining[threading.current_thread()] = None
            older = self._admission.admit(channel)
            self._accepted.append(channel)
        for stale in older:
            stale.cut(f"replaced by {join.worker}.{join.incarnation}")
        self._bell.ring()

    def _refusal(self, join: shm_join.Join) -> str | None:
        return self._admission.refusal(
            join.worker, join.incarnation, join.peer, join.peer_incarnation
        )


class ShmConnector:
    """See `base.Connector`.

    bell: the client's doorbell, rung by all its servers
    timeout_s: longest time one `connect` may take
    """

    def __init__(
        self,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: ShmDoorbell,
        *,
        timeout_s: float = HANDSHAKE_S,
    ) -> None:
        memory.require_native()
        self._worker = worker
        self._incarnation = incarnation
        self._secret = secret
        self._bell = bell
        self._timeout_s = timeout_s
        self._monitor = Monitor(f"shm-{worker}")

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> ShmClientChannel:
        path = address.get("path")
        if address.get("kind") != "shm" or not path:
            raise ConnectFailed(f"{peer}: {address} is not the address of a shm listener")
        deadline = time.monotonic() + self._timeout_s
        refusal = shm_join.geometry_refusal(geometry, 1 << 62)
        if refusal is not None:
            raise ConnectFailed(f"{peer}: {refusal}")
        try:
            sock = unix.connect(path, deadline)
            try:
                with self._bell.life() as life:
                    return self._join(sock, peer, peer_incarnation, geometry, life, deadline)
            except BaseException:
                sock.close()
                raise
        except (OSError, FrameError, AuthError, ConnectFailed) as error:
            raise ConnectFailed(f"{peer}.{peer_incarnation}: {error}") from None

    def _join(
        self,
        sock: socket.socket,
        peer: str,
        peer_incarnation: int,
        g: Geometry,
        life: int,
        deadline: float,
    ) -> ShmClientChannel:
        join = shm_join.Join(
            self._worker,
            self._incarnation,
            peer,
            peer_incarnation,
            g.slots,
            g.request_bytes,
            g.reply_bytes,
            life,
        )
        fd, replies = memory.create_memory(
            f"tarragon-{self._worker}", native.module.ring_bytes(g.slots, g.reply_bytes)
        )
        try:
            peer_life, got = shm_join.ask(sock, self._secret, join, [fd, self._bell.fd], deadline)
        finally:
            os.close(fd)
        try:
            requests = memory.adopt_memory(
                got[0], native.module.ring_bytes(g.slots, g.request_bytes)
            )
            peer_bell = memory.adopt_memory(got[1], native.module.BELL_BYTES)
        finally:
            unix.close_all(got)
        channel = ShmClientChannel(
            peer,
            peer_incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            peer_bell=peer_bell,
        )
        channel.start(sock, self._monitor, life, peer_life)
        return channel
