"""The transport suite over two RDMA ports of one kernel, joined by a wire (tests/rdma/wire.sh).

Servers are at one end of it, clients at the other; handshakes take the wire too.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from tarragon_hpc.config.schema import RdmaConfig
from tarragon_hpc.transport.rdma_ports import Port, choose_port, find_ports
from tests.conformance import peer
from tests.conformance.world import ProcessWorld

WIRE = Path(__file__).parents[1] / "rdma" / "wire.sh"
CLIENTS, SERVERS = "rxe0", "rxe1"
HOST = "10.77.0.2"  # the servers'
# 7.5 s until a queue pair gives its peer up: some tests look before. Silence is found out sooner,
# a port that is down at once.
SETTINGS = RdmaConfig(timeout=18, retries=6)


@functools.cache
def ports():
    """Of this machine; a process forked from this one need not look again, which takes time."""
    return find_ports()


def port_of(device):
    found = choose_port(ports(), RdmaConfig(device=device))
    assert isinstance(found, Port), found
    return found


class RdmaWorld(ProcessWorld):
    name = "rdma"
    death_seen_s = 0.3  # in an interpreted guest
    stopped_peers_answer_probes = True
    has_network = True
    one_link = True
    cut_seen_s = 9.0
    silent_loss_s = 9.0
    _told_s = 4.5  # what listener and connector are told: half of it, as the guest is slow

    @staticmethod
    def possible():
        """Whether this machine has the two ports."""
        return {CLIENTS, SERVERS} <= {p.device for p in ports()}

    def __init__(self, directory):
        super().__init__(directory)
        self._broken = None

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        from tarragon_hpc.transport.rdma import RdmaListener

        who = (worker, incarnation, secret, bell)
        return self.made(
            RdmaListener(HOST, port_of(SERVERS), SETTINGS, *who, silent_loss_s=self._told_s)
        )

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        from tarragon_hpc.transport.rdma import RdmaConnector

        who = (worker, incarnation, secret, bell)
        return RdmaConnector(port_of(CLIENTS), SETTINGS, *who, silent_loss_s=self._told_s)

    def nowhere(self):
        return {"kind": "rdma", "host": HOST, "port": "1", "fabric": "roce"}

    def cut(self, worker):
        self._wire("cut")

    def silence(self, worker):
        self._wire("silence")

    def heal(self, worker):
        if self._broken == "cut":
            self._wire("mend")
        else:
            self._wire("slow", "0ms", "0%")  # which is quicker: silence must stay short

    def _wire(self, *what):
        self._broken = what[0]
        subprocess.run(["sh", str(WIRE), *what], check=True)

    def close(self):
        if self._broken:
            self._wire("mend")
        super().close()
