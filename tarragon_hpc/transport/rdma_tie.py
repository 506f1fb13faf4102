"""What binds two processes over RDMA: their queue pairs, and the TCP connection they met by.

That connection stays open. The kernel closes it with the process, which is known sooner than by
unanswered writes; and if it falls silent, so has the peer's node, or the way to it: that is a loss
even while the queue pairs work, since nobody could tell any more whether the process lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.transport.watch import PeerWatch

if TYPE_CHECKING:
    import socket

    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.monitor import Monitor
    from tarragon_hpc.transport.rdma_link import RdmaLink
    from tarragon_hpc.transport.slot_channel import SlotChannel


class RdmaTie:
    """See `slot_channel.Tie`. Takes over the handshake's socket and the link.

    inbound: the ring that the peer writes; slot_bytes: of each of its slots
    drain_s: longest wait for the peer's memory to have what was sent, before it is left
    """

    def __init__(
        self,
        channel: SlotChannel,
        bell: ProcessDoorbell,
        link: RdmaLink,
        sock: socket.socket,
        monitor: Monitor,
        inbound: memoryview,
        slot_bytes: int,
        *,
        drain_s: float,
    ) -> None:
        self._channel = channel
        self._bell = bell
        self._link = link
        self._drain_s = drain_s
        self._gone = False
        self._watch = bell.native.watch(inbound, channel.geometry.slots, slot_bytes)
        link.start(self._lose, bell.ring)
        self._socket = PeerWatch(sock, monitor, self._lose, lambda: None)

    def _lose(self, reason: str) -> None:
        """In the thread of the pump or of the monitor."""
        self._gone = True
        self._channel.lose(reason)

    @property
    def answered(self) -> int:
        return self._link.answered

    def probe(self) -> None:
        if not self._gone:
            self._link.probe()

    def reason(self) -> str:
        return "process gone"

    def stop(self) -> None:
        if not self._gone:
            self._link.drain(self._drain_s)
        self._socket.stop()
        self._link.close()
        self._bell.native.unwatch(self._watch)
