"""What the transport suite needs of a transport: the face of all worlds (worlds.py lists them)."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import threading
import time

from tarragon_hpc.transport.bell import ProcessDoorbell
from tests.conformance import peer

# Starts with everything imported: an interpreter that starts takes seconds in the guest of
# tests/rdma.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.conformance.worlds"])


class World:
    """Makes doorbells, listeners and connectors, closes what it made, and sees threads end.

    A world has `bell()`, `listener(bell, worker, incarnation, secret)`, `connector(…)` likewise,
    `nowhere()` (an address where nobody listens), `serving_peer(mode, incarnation)` (a worker `ew0`
    that serves as `peer.serve` says: it and its address) and `asking_peer(address, geometry)` (a
    worker `aw9` that has posted `hello`). A peer can `kill`, `stop` and `go_on`.
    """

    name: str  # of the transport: the id of its test cases
    native = True  # whether it needs the compiled module
    died = "process gone"  # pattern of the reason when a peer has died
    death_seen_s = 0.05
    # Whether a stopped process seems to live: its network card answers for it.
    stopped_peers_answer_probes = False
    # Whether there are links to break: `cut(worker)`: they break, and both ends can tell;
    # `silence(worker)`: they take everything and bring nothing; `heal(worker)`: as before, and a
    # connection that has outlived a silence gets what was on its way.
    has_network = False
    one_link = False  # whether all workers share it
    cut_seen_s = 1.0  # when both ends of a cut link know
    load = 1000  # requests of the test under load, each way
    large = 8 << 20  # bytes of a large message
    silent_loss_s = 1.0  # when both ends of a silent one know; `listener` and `connector` are told

    @staticmethod
    def possible():
        """Whether this machine has what it takes."""
        return True

    def __init__(self, directory):
        self.directory = directory
        self.peers = []
        self._threads = set(threading.enumerate())
        self._made = []

    def made(self, thing):
        self._made.append(thing)
        return thing

    def reach(self, worker, address):
        """The address by which others reach a worker that listens there."""
        return address

    def close(self):
        for thing in reversed(self._made):
            thing.close()
        for other in self.peers:
            other.end()
        for thread in set(threading.enumerate()) - self._threads:
            # It may have been started and not have begun.
            while not thread.is_alive() and thread in threading.enumerate():
                time.sleep(0.001)
            thread.join(20)
            assert not thread.is_alive(), f"{thread} was left behind"


class ProcessWorld(World):
    """One whose peers are processes of their own, which make the same world for themselves."""

    def bell(self):
        return self.made(ProcessDoorbell())

    def serving_peer(self, mode, incarnation=1):
        self.peers.append(ProcessPeer(self.name, "serve", self.directory, mode, incarnation))
        return self.peers[-1], self.reach("ew0", self.peers[-1].line())

    def asking_peer(self, address, geometry):
        self.peers.append(ProcessPeer(self.name, "ask", self.directory, address, geometry))
        assert self.peers[-1].line() == "posted"
        return self.peers[-1]


class ProcessPeer:
    """`peer.py` in a process of its own."""

    def __init__(self, *args):
        self._lines, theirs = _PROCESSES.Pipe(duplex=False)
        self._process = _PROCESSES.Process(target=peer.main, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def line(self):
        return self._lines.recv()

    def kill(self):
        self._process.kill()

    def stop(self):
        os.kill(self._process.pid, signal.SIGSTOP)
        while pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0)

    def go_on(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self):
        self._process.kill()
        self._process.join()
        self._process.close()
        self._lines.close()
