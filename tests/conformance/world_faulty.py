"""Other worlds' transports in the wrapper that makes faults."""

from __future__ import annotations

from tarragon_hpc.transport.fault_plan import FaultPlan
from tarragon_hpc.transport.faulty import Faults
from tests.conformance import peer
from tests.conformance.world_inproc import InprocWorld
from tests.conformance.world_shm import ShmWorld
from tests.conformance.world_tcp import TcpWorld


def struck(kind, faults):
    """A world like another one, in which everybody has these faults; without any it is as good."""

    class Struck(kind):
        name = f"faulty-{kind.name}"
        plan = faults

        def __init__(self, directory):
            super().__init__(directory)
            self._faults = {}

        def bell(self):
            inner = super().bell()
            faults = Faults(self.plan, inner)
            self._faults[faults.bell] = faults, inner
            return faults.bell

        def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
            faults, inner = self._faults[bell]
            return faults.listener(super().listener(inner, worker, incarnation, secret))

        def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
            faults, inner = self._faults[bell]
            return faults.connector(super().connector(inner, worker, incarnation, secret))

    return Struck


FaultyInproc = struck(InprocWorld, FaultPlan())
FaultyShm = struck(ShmWorld, FaultPlan())
FaultyTcp = struck(TcpWorld, FaultPlan())
