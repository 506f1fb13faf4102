"""All worlds of the transport suite, by the name of their transport.

A world registers here and nowhere else. Where a transport cannot run it is not listed, and whoever
can run it says so (the RDMA guest runs this suite with `-k rdma`).

PLAIN: the transports themselves; WORLDS: also in the wrapper that makes faults, without any
"""

from __future__ import annotations

from tests.conformance.world_faulty import FaultyInproc, FaultyShm, FaultyTcp
from tests.conformance.world_inproc import InprocWorld
from tests.conformance.world_rdma import RdmaWorld
from tests.conformance.world_shm import ShmWorld
from tests.conformance.world_slow_tcp import SlowTcpWorld
from tests.conformance.world_tcp import TcpWorld

PLAIN = {
    world.name: world
    for world in (InprocWorld, ShmWorld, TcpWorld, RdmaWorld, SlowTcpWorld)
    if world.possible()
}
WORLDS = PLAIN | {world.name: world for world in (FaultyInproc, FaultyShm, FaultyTcp)}
