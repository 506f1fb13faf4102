"""The transport suite over shared memory."""

from __future__ import annotations

import os

from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tests.conformance import peer
from tests.conformance.world import ProcessWorld


class ShmWorld(ProcessWorld):
    name = "shm"

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        return self.made(ShmListener(self.directory, worker, incarnation, secret, bell))

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        return ShmConnector(worker, incarnation, secret, bell)

    def nowhere(self):
        return {"kind": "shm", "path": os.path.join(self.directory, "nobody.sock")}
