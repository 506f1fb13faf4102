"""What binds two processes on one node: a Unix socket, a pidfd, and signs of life in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.transport.watch import PeerWatch

if TYPE_CHECKING:
    import socket

    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.monitor import Monitor
    from tarragon_hpc.transport.slot_channel import SlotChannel


class ShmTie:
    """See `slot_channel.Tie`. Takes over the handshake's socket.

    peer_bell: memory of the peer's doorbell, with its signs of life
    life: the sign of life that the peer watches; peer_life: the peer's, which is watched here
    """

    def __init__(
        self,
        channel: SlotChannel,
        bell: ProcessDoorbell,
        peer_bell: memoryview,
        sock: socket.socket,
        monitor: Monitor,
        *,
        life: int,
        peer_life: int,
    ) -> None:
        self.answered = 0
        self._bell = bell
        self._life = life
        self._socket = PeerWatch(sock, monitor, channel.lose, self._alive)
        self._sign = native.module.LifeWatch(peer_bell, peer_life, channel.native, bell.native)

    def _alive(self) -> None:
        """In the monitor's thread."""
        self.answered += 1
        self._bell.ring()

    def probe(self) -> None:
        self._socket.probe()

    def reason(self) -> str:
        return "process gone"  # the sign of life was given up; the socket will follow

    def stop(self) -> None:
        self._sign.stop()
        self._socket.stop()
        self._bell.give_life(self._life)
