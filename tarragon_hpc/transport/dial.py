"""Connecting to a peer without keeping anybody waiting."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConnectFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.transport.base import ClientChannel, Connector, Geometry
    from tarragon_hpc.wire.common import Peer


def in_a_thread(job: Callable[[], None]) -> None:
    """Run a job in the background."""
    threading.Thread(target=job, name="dial", daemon=True).start()


def dial(connector: Connector, peer: Peer, geometry: Geometry) -> ClientChannel | str:
    """A channel to a peer, or why there is none."""
    try:
        return connector.connect(peer.worker, peer.incarnation, peer.address, geometry)
    except ConnectFailed as error:
        return str(error)
