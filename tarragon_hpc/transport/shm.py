"""Same-node transport: one-sided writes into the peer's memory, a futex as doorbell.

`shm_join.py` is how two processes meet, `shm_channel.py` what they have then.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.errors import AuthError, ConnectFailed, ConnectRefused, FrameError
from tarragon_hpc.transport import memory, shm_join, unix
from tarragon_hpc.transport.admission import geometry_refusal
from tarragon_hpc.transport.dial import failure
from tarragon_hpc.transport.monitor import Monitor
from tarragon_hpc.transport.reception import HANDSHAKE_S, Reception
from tarragon_hpc.transport.shm_channel import ShmTie
from tarragon_hpc.transport.slot_channel import SlotClient, SlotServer

if TYPE_CHECKING:
    import socket

    from tarragon_hpc.transport.base import Geometry, ServerChannel
    from tarragon_hpc.transport.bell import ProcessDoorbell


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
        bell: ProcessDoorbell,
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
        self._path = os.path.join(os.path.abspath(runtime_dir), f"{worker}.{incarnation}.sock")
        self._reception = Reception(
            unix.listen(self._path), worker, incarnation, bell, self._monitor, self._join
        )

    def __repr__(self) -> str:
        state = "closed" if self._reception.closed else "open"
        return f"ShmListener({self.worker}.{self.incarnation}, {state})"

    def address(self) -> dict[str, str]:
        return {"kind": "shm", "path": self._path}

    def accepted(self) -> list[ServerChannel]:
        return self._reception.accepted()

    def close(self) -> None:
        """See `Reception.close`."""
        if not self._reception.closed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._reception.close()

    def _join(self, sock: socket.socket, deadline: float) -> None:
        """In a thread of its own."""
        join, fds = shm_join.hear(sock, self._secret, deadline)
        try:
            self._admit(sock, join, fds, deadline)
        except ConnectFailed as refusal:
            shm_join.reply(sock, shm_join.Answer(str(refusal)), [], deadline)
            raise
        finally:
            unix.close_all(fds)

    def _admit(
        self, sock: socket.socket, join: shm_join.Join, fds: list[int], deadline: float
    ) -> None:
        """Make the channel and tell both sides; adds to `fds` what the caller closes."""
        server = (join.peer, join.peer_incarnation)
        refusal = (
            self._reception.refusal(join.worker, join.incarnation, *server)
            or geometry_refusal(join.geometry, self._max_bytes)
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
        channel = SlotServer(
            "shm",
            join.worker,
            join.incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            notifier=native.module.Doorbell(peer_bell, 0),
        )

        def start() -> None:
            with self._bell.life() as life:
                answer = shm_join.Answer(life=life)
                shm_join.reply(sock, answer, [fd, self._bell.fd], deadline)
                channel.bind(
                    ShmTie(
                        channel,
                        self._bell,
                        peer_bell,
                        sock,
                        self._monitor,
                        life=life,
                        peer_life=join.life,
                    )
                )

        self._reception.admit(channel, server, start)


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
        bell: ProcessDoorbell,
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
    ) -> SlotClient:
        path = address.get("path")
        if address.get("kind") != "shm" or not path:
            raise ConnectFailed(f"{peer}: {address} is not the address of a shm listener")
        deadline = time.monotonic() + self._timeout_s
        refusal = geometry_refusal(geometry, 1 << 62)
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
        except TimeoutError as error:  # no network that could lose anything: the peer is stopped
            raise ConnectRefused(f"{peer}.{peer_incarnation}: {error}") from None
        except (OSError, FrameError, AuthError, ConnectFailed) as error:
            raise failure(peer, peer_incarnation, error) from None

    def _join(
        self,
        sock: socket.socket,
        peer: str,
        peer_incarnation: int,
        g: Geometry,
        life: int,
        deadline: float,
    ) -> SlotClient:
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
        channel = SlotClient(
            "shm",
            peer,
            peer_incarnation,
            g,
            self._bell,
            requests=requests,
            replies=replies,
            notifier=native.module.Doorbell(peer_bell, 0),
        )
        channel.bind(
            ShmTie(
                channel,
                self._bell,
                peer_bell,
                sock,
                self._monitor,
                life=life,
                peer_life=peer_life,
            )
        )
        return channel
