"""What a REFE knows of its EWs, and says about them: who is lost, avoided, or back again.

Every change makes new routes (`renew`) and is reported once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tarragon_hpc.datapath.report import Clearance, Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tarragon_hpc.datapath.health import Health
    from tarragon_hpc.datapath.links import Links
    from tarragon_hpc.datapath.probes import Probes
    from tarragon_hpc.datapath.report import Report
    from tarragon_hpc.datapath.stats import RefeStats
    from tarragon_hpc.transport.base import ClientChannel
    from tarragon_hpc.wire.common import Peer

log = logging.getLogger(__name__)


class Peers:
    """Of one REFE, in its thread.

    reroute: makes new routes, around whoever is lost or avoided
    generation: grows whenever waiting rows should be routed anew
    """

    def __init__(
        self,
        links: Links,
        health: Health,
        probes: Probes,
        stats: RefeStats,
        *,
        report: Callable[[Report], None],
        reroute: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.links = links
        self.health = health
        self.probes = probes
        self.report = report
        self.generation = 0
        self._stats = stats
        self._reroute = reroute
        self._clock = clock
        self._gone: dict[str, ClientChannel] = {}  # the last lost one of each EW: told once

    def __repr__(self) -> str:
        return f"Peers({self.links}, {self.health})"

    def look_around(self) -> None:
        """Before a dispatch: use what has become usable, leave out what is lost meanwhile."""
        if not (self.links.down or self.health.avoided):
            return
        now = self._clock()
        changed = self.adopt()
        self.links.retry(now)
        for worker in self.health.avoided:
            channel = self.links.usable(worker)
            if channel is None:
                self.health.forget(worker)
                if self.links.incarnation(worker):
                    self.lose(worker, "lost while it was avoided")
                changed = True
            elif channel.owed() == 0 and self.health.may_return(worker, now):
                self.health.trust(worker, now)
                self.report(Clearance(worker, channel.peer_incarnation))
                changed = True
        if changed:
            self.renew()

    def adopt(self) -> bool:
        """Use the connections made in the background; True if there is a new one."""
        new = self.links.adopt()
        for worker in new:
            self.probes.forget(worker)
        while self.links.refused:
            self._suspect(*self.links.refused.pop())
        return bool(new)

    def lose(self, worker: str, reason: str) -> None:
        """An EW takes no more work until it is connected anew."""
        channel = self.links.channels.get(worker)
        known = channel is not None and self._gone.get(worker) is channel
        self.links.lose(worker, reason)
        self.health.forget(worker)
        if channel is not None and not known:
            self._gone[worker] = channel
            self._stats.peers_lost += 1
            self._suspect(worker, reason)
        self.renew()

    def cut(self, worker: str, reason: str) -> None:
        """Do not listen to an EW any more."""
        self.links.cut(worker, reason)
        self.lose(worker, reason)

    def avoid(self, worker: str, reason: str) -> None:
        """An EW gets no work as long as another one can do it, until it owes nothing."""
        if self.health.avoid(worker, self._clock()):
            self._suspect(worker, reason)

    def renew(self) -> None:
        """The table, or who can be used, has changed: make new routes."""
        self.generation += 1
        self._reroute()

    def lost(self) -> dict[str, str]:
        """EWs that cannot be given any work, and why."""
        gone = {w: c.lost for w, c in self.links.channels.items() if c.lost is not None}
        return gone | self.links.down

    def follow(self, workers: Sequence[str], peers: Mapping[str, Peer], *, wait: bool) -> None:
        """There is a new table of these EWs; see `Links.update`. What was known of a process that
        is not there any more is forgotten.
        """
        before = {w: self.links.incarnation(w) for w in self.health.known()}
        self.links.update(workers, peers, self._clock(), wait=wait)
        for worker, incarnation in before.items():
            if self.links.incarnation(worker) != incarnation:
                self.health.forget(worker)
        self.adopt()
        self.renew()

    def _suspect(self, worker: str, reason: str) -> None:
        log.warning("%s: %s", worker, reason)
        self.report(Suspicion(worker, self.links.incarnation(worker), reason))
