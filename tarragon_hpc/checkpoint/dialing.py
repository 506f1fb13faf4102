"""Connections to the checkpoint stores, made in the background: dialing may take long."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.transport.dial import dial, in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from tarragon_hpc.transport.base import ClientChannel, Connector, Geometry
    from tarragon_hpc.wire.common import Peer

# A store that is out of reach is tried again after so long.
_RETRY_S = 1.0

log = logging.getLogger(__name__)


class Dialer:
    """Belongs to the courier's thread.

    deliver: called from any thread with the result of a dial: a channel, or why there is none; it
    must see to it that `came` is called in the courier's thread
    """

    def __init__(
        self,
        connector: Connector,
        geometry: Geometry,
        deliver: Callable[[Incarnation, ClientChannel | str], None],
        spawn: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._connector = connector
        self._geometry = geometry
        self._deliver = deliver
        self._spawn = spawn
        self._peers: dict[Incarnation, Peer] = {}
        self._dialing: set[Incarnation] = set()
        self._later: dict[Incarnation, float] = {}  # when to dial again
        self._closed = False

    def want(self, peers: Iterable[Peer]) -> None:
        """Connect to these stores, and to no others."""
        self._peers = {Incarnation(p.worker, p.incarnation): p for p in peers}
        self._later = {who: at for who, at in self._later.items() if who in self._peers}

    def wanted(self, who: Incarnation) -> bool:
        """Whether a connection to this store is of any use."""
        return who in self._peers

    def connecting(self) -> bool:
        """Whether there may soon be a connection that there never was."""
        return bool(self._dialing - self._later.keys())

    def dial(self, connected: Collection[Incarnation], now: float) -> float:
        """Dial the stores that are not connected, if it is time; returns when it is next."""
        next_look = float("inf")
        for who, peer in self._peers.items():
            if who in connected or who in self._dialing:
                continue
            at = self._later.get(who, now)
            if at <= now:
                self._dialing.add(who)
                self._spawn(partial(self._job, who, peer))
            else:
                next_look = min(next_look, at)
        return next_look

    def came(self, who: Incarnation, result: ClientChannel | str, now: float) -> bool:
        """A dial is over; whether its channel is to be used. If not, it is closed."""
        self._dialing.discard(who)
        if isinstance(result, str):
            again = who in self._later
            log.log(logging.DEBUG if again else logging.WARNING, "%s: %s", who, result)
            self.lost(who, now)
            return False
        if not self.wanted(who):
            result.close()
            return False
        return True

    def lost(self, who: Incarnation, now: float) -> None:
        """A connection has ended: try again, later."""
        if who in self._peers:
            self._later[who] = max(self._later.get(who, 0.0), now + _RETRY_S)

    def refused(self, who: Incarnation) -> None:
        """This store and this AW will never come together."""
        self._later[who] = float("inf")

    def close(self) -> None:
        """Want no connection any more."""
        self._closed = True
        self._peers = {}

    def _job(self, who: Incarnation, peer: Peer) -> None:
        result = dial(self._connector, peer, self._geometry)
        if self._closed and not isinstance(result, str):
            result.close()
        else:
            self._deliver(who, result)
