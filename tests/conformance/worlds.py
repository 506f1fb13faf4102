"""All worlds of the transport suite, by the name of their transport.

A world registers here and nowhere else. Where a transport cannot run it is not listed, and whoever
can run it says so (the RDMA guest runs this suite with `-k rdma`).
"""

from __future__ import annotations

from tests.conformance.world_inproc import InprocWorld
from tests.conformance.world_rdma import RdmaWorld
from tests.conformance.world_shm import ShmWorld

_ALL = (InprocWorld, ShmWorld, *([RdmaWorld] if RdmaWorld.possible() else []))
WORLDS = {world.name: world for world in _ALL}
