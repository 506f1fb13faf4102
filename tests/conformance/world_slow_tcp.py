"""The transport suite over TCP on a wire (tests/rdma/wire.sh) that delays and loses packets."""

from __future__ import annotations

import os

from tests.conformance.world_tcp import TcpWorld


class SlowTcpWorld(TcpWorld):
    """Every step to the relay and from it takes the wire, in both directions."""

    name = "slow-tcp"
    host = "10.77.0.2"
    # A lost packet is sent again after 0.2 s at least, and one of twenty is lost.
    death_seen_s = 3.0
    cut_seen_s = 6.0
    silent_loss_s = 6.0
    load = 100
    large = 128 << 10

    @staticmethod
    def possible():
        """Whether there is such a wire: who laid it says so."""
        return "TARRAGON_SLOW_WIRE" in os.environ
