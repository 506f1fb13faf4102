"""The channels to the EWs of the current routing table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConnectFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tarragon_hpc.transport.base import ClientChannel, Connector, Geometry
    from tarragon_hpc.wire.common import Peer

log = logging.getLogger(__name__)


class Links:
    """One channel per EW. Belongs to the engine thread.

    channels: those that are connected, lost ones included until the next `update`
    down: why a wanted EW has no channel that could be used
    """

    def __init__(self, connector: Connector, geometry: Geometry) -> None:
        self._connector = connector
        self._geometry = geometry
        self.channels: dict[str, ClientChannel] = {}
        self.down: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Links(up={sorted(self.channels.keys() - self.down)}, down={self.down})"

    def update(self, wanted: Iterable[str], peers: Mapping[str, Peer]) -> None:
        """Connect to the wanted EWs, keep what is connected, drop everything else.

        An EW that cannot be reached is not an error here: `down` says why.
        """
        wanted = list(wanted)
        self.down = {}
        for worker, channel in list(self.channels.items()):
            peer = peers.get(worker) if worker in wanted else None
            if peer is None or peer.incarnation != channel.peer_incarnation or channel.lost:
                self.channels.pop(worker).close()
        for worker in wanted:
            if worker in self.channels:
                continue
            if worker not in peers:
                self.down[worker] = "the table has no address of it"
                continue
            try:
                peer = peers[worker]
                self.channels[worker] = self._connector.connect(
                    worker, peer.incarnation, peer.address, self._geometry
                )
            except ConnectFailed as error:
                log.warning("%s", error)
                self.down[worker] = str(error)

    def lose(self, worker: str, reason: str) -> None:
        """The EW takes no more work until the next `update`."""
        self.down.setdefault(worker, reason)

    def cut(self, worker: str, reason: str) -> None:
        """Do not listen to the EW any more: it breaks the protocol."""
        self.channels[worker].close()
        self.lose(worker, reason)

    def close(self) -> None:
        """Close all channels."""
        for channel in self.channels.values():
            channel.close()
        self.channels.clear()
