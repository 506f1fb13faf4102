"""The transport suite over TCP, through a relay that can break each worker's link."""

from __future__ import annotations

import socket

from tarragon_hpc.transport.tcp import TcpConnector, TcpListener
from tests.conformance import peer
from tests.conformance.relay import Relay
from tests.conformance.world import ProcessWorld

HOST = "127.0.0.1"


class TcpWorld(ProcessWorld):
    name = "tcp"
    has_network = True
    host = HOST
    death_seen_s = 0.25  # the news passes through the relay's thread
    # A peer is asked after a quarter of it, and may take all of it to answer.
    _silent_loss_s = ProcessWorld.silent_loss_s * 0.6

    def __init__(self, directory):
        super().__init__(directory)
        self._relays = {}
        # A peer is asked after a quarter of it, and may take all of it to answer.
        self._silent_loss_s = self.silent_loss_s * 0.6

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        return self.made(
            TcpListener(
                self.host, worker, incarnation, secret, bell, silent_loss_s=self._silent_loss_s
            )
        )

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        return TcpConnector(worker, incarnation, secret, bell, silent_loss_s=self._silent_loss_s)

    def nowhere(self):
        with socket.create_server((self.host, 0)) as sock:  # a port that nobody has any more
            return {"kind": "tcp", "host": self.host, "port": str(sock.getsockname()[1])}

    def reach(self, worker, address):
        """Through the worker's relay, which leads to where it listens now."""
        relay = self._relays[worker] = self.made(Relay(address["host"], int(address["port"])))
        return address | {"port": str(relay.port)}

    def cut(self, worker):
        self._relays[worker].cut()

    def silence(self, worker):
        self._relays[worker].silence()

    def heal(self, worker):
        self._relays[worker].heal()
