"""The channels to the EWs of the current routing table."""

from __future__ import annotations

import logging
import queue
from typing import TYPE_CHECKING

from tarragon_hpc.transport.dial import dial, in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tarragon_hpc.transport.base import ClientChannel, Connector, Doorbell, Geometry
    from tarragon_hpc.wire.common import Peer

# A peer of the table that is out of reach is tried again after so long.
_RETRY_S = 1.0
_CONNECTING = "connecting"

log = logging.getLogger(__name__)


class Links:
    """One channel per EW. Belongs to the engine thread.

    channels: those that are connected, lost ones included until the next `update`
    down: why a wanted EW has no channel that could be used
    refused: (EW, reason) of first attempts that failed, for the owner to take
    bell: rung when a connection that was made in the background is there
    """

    def __init__(
        self,
        connector: Connector,
        geometry: Geometry,
        bell: Doorbell,
        *,
        spawn: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._connector = connector
        self._geometry = geometry
        self._bell = bell
        self._spawn = spawn
        self._peers: dict[str, Peer] = {}
        self._dialing: dict[str, float] = {}  # since when
        self._dialed: queue.SimpleQueue[tuple[Peer, ClientChannel | str]] = queue.SimpleQueue()
        self.channels: dict[str, ClientChannel] = {}
        self.down: dict[str, str] = {}
        self.refused: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return f"Links(up={sorted(self.channels.keys() - self.down)}, down={self.down})"

    def update(
        self, wanted: Iterable[str], peers: Mapping[str, Peer], now: float, *, wait: bool
    ) -> None:
        """Connect to the wanted EWs, keep what is connected, drop everything else.

        With `wait` all connections are made before this returns; without, new ones are made in the
        background and found by `adopt`. An EW that cannot be reached is no error: `down` says why.
        """
        self._peers = {worker: peers[worker] for worker in wanted if worker in peers}
        self.down = {w: "the table has no address of it" for w in wanted if w not in peers}
        self._dialing = {}
        for worker, channel in list(self.channels.items()):
            peer = self._peers.get(worker)
            if peer is None or peer.incarnation != channel.peer_incarnation or channel.lost:
                self.channels.pop(worker).close()
        for worker, peer in self._peers.items():
            if worker not in self.channels:
                self._dial(peer, now, wait=wait)
        self.adopt()

    def adopt(self) -> list[str]:
        """Take over the connections made meanwhile; returns whose are new."""
        new: list[str] = []
        while True:
            try:
                peer, result = self._dialed.get_nowait()
            except queue.Empty:
                return new
            current = self._peers.get(peer.worker)
            wanted = current is not None and current.incarnation == peer.incarnation
            if isinstance(result, str):
                if wanted and peer.worker not in self.channels:
                    if self.down.get(peer.worker) == _CONNECTING:
                        self.refused.append((peer.worker, result))
                    self.down[peer.worker] = result
                    self._dialing.setdefault(peer.worker, 0.0)
            elif not wanted:
                result.close()
            else:
                if (old := self.channels.pop(peer.worker, None)) is not None:
                    old.close()
                self.channels[peer.worker] = result
                self.down.pop(peer.worker, None)
                self._dialing.pop(peer.worker, None)
                new.append(peer.worker)

    def retry(self, now: float) -> None:
        """Dial those that are down again, now and then."""
        for worker in self.down:
            peer = self._peers.get(worker)
            if peer is not None and now - self._dialing.get(worker, now) >= _RETRY_S:
                self._dial(peer, now, wait=False)
            else:
                self._dialing.setdefault(worker, now)

    def usable(self, worker: str) -> ClientChannel | None:
        """The channel to an EW that can be given work."""
        channel = self.channels.get(worker)
        if channel is None or worker in self.down or channel.lost is not None:
            return None
        return channel

    def incarnation(self, worker: str) -> int:
        """Of the EW that the table means by this name; 0 if it is in none."""
        peer = self._peers.get(worker)
        return 0 if peer is None else peer.incarnation

    def lose(self, worker: str, reason: str) -> None:
        """The EW takes no more work until it is connected anew."""
        self.down.setdefault(worker, reason)

    def cut(self, worker: str, reason: str) -> None:
        """Do not listen to the EW any more: it breaks the protocol, or does not answer."""
        if worker in self.channels:
            self.channels[worker].close()
        self.lose(worker, reason)

    def close(self) -> None:
        """Close all channels."""
        self._peers = {}
        self.adopt()
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()

    def _dial(self, peer: Peer, now: float, *, wait: bool) -> None:
        again = self.down.setdefault(peer.worker, _CONNECTING) != _CONNECTING
        self._dialing[peer.worker] = now

        def job() -> None:
            result = dial(self._connector, peer, self._geometry)
            if isinstance(result, str):
                log.log(logging.DEBUG if again else logging.WARNING, "%s", result)
            self._dialed.put((peer, result))
            self._bell.ring()

        if wait:
            job()
        else:
            self._spawn(job)
