"""Connecting to a peer without keeping anybody waiting."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tarragon_hpc.errors import AuthError, ConnectFailed, ConnectRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.transport.base import ClientChannel, Connector, Geometry
    from tarragon_hpc.wire.common import Peer


def failure(peer: str, peer_incarnation: int, error: Exception) -> ConnectFailed:
    """What a connector raises for an error on the way to a peer."""
    refused = isinstance(error, ConnectRefused | AuthError)
    kind = ConnectRefused if refused else ConnectFailed
    return kind(f"{peer}.{peer_incarnation}: {error}")


def in_a_thread(job: Callable[[], None]) -> None:
    """Run a job in the background."""
    threading.Thread(target=job, name="dial", daemon=True).start()


def dial(connector: Connector, peer: Peer, geometry: Geometry) -> ClientChannel | str:
    """A channel to a peer, or why there is none."""
    try:
        return connector.connect(peer.worker, peer.incarnation, peer.address, geometry)
    except ConnectFailed as error:
        return str(error)
