"""The transport suite in one process: peers are threads, and dying is the network's business."""

from __future__ import annotations

import threading

from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tests.conformance import peer
from tests.conformance.world import World


class InprocWorld(World):
    name = "inproc"
    native = False
    died = "killed"
    has_network = True

    def __init__(self, directory):
        super().__init__(directory)
        self.network = InprocNetwork()
        self._timers = {}

    def bell(self):
        return InprocDoorbell()

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        return self.made(InprocListener(self.network, worker, incarnation, secret, bell))

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        return InprocConnector(self.network, worker, incarnation, secret, bell)

    def nowhere(self):
        return {"kind": "inproc", "name": "nobody"}

    def cut(self, worker):
        self.network.cut(worker)

    def silence(self, worker):
        """Time does not pass in the network itself, so it is told when somebody gives up."""
        self.network.silence(worker)
        self._timers[worker] = threading.Timer(
            self.silent_loss_s * 0.75, self.network.cut, [worker, "silent"]
        )
        self._timers[worker].start()

    def heal(self, worker):
        if worker in self._timers:
            self._timers.pop(worker).cancel()
        self.network.heal(worker)

    def serving_peer(self, mode, incarnation=1):
        bell = self.bell()
        listener = self.listener(bell, incarnation=incarnation)
        target = lambda running: peer.serve(listener, bell, mode, running)  # noqa: E731
        self.peers.append(ThreadPeer(self.network, target, "ew0"))
        return self.peers[-1], listener.address()

    def asking_peer(self, address, geometry):
        peer.ask(self.connector(self.bell(), "aw9"), address, geometry)
        self.peers.append(ThreadPeer(self.network, lambda running: None, "aw9"))
        return self.peers[-1]


class ThreadPeer:
    def __init__(self, network, target, worker):
        self.worker = worker
        self._network = network
        self._alive = True
        self._going = threading.Event()
        self._going.set()
        self._thread = threading.Thread(target=target, args=(self._running,), daemon=True)
        self._thread.start()

    def _running(self):
        self._going.wait()
        return self._alive

    def kill(self):
        self._network.kill(self.worker)
        self._alive = False

    def stop(self):
        self._going.clear()
        self._network.stopped.add(self.worker)

    def go_on(self):
        self._going.set()
        self._network.stopped.discard(self.worker)

    def end(self):
        self._alive = False
        self._going.set()
        self._thread.join()
