"""Worlds in which the transport suite runs: one class per implementation, same face."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import tarragon_hpc
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tests.conformance.pairs import Pair

PEER = pathlib.Path(__file__).with_name("peer.py")
PACKAGE = str(pathlib.Path(tarragon_hpc.__file__).parent.parent)
_spec = importlib.util.spec_from_file_location("conformance_peer", PEER)
peer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(peer)


class World:
    """Makes doorbells, listeners and connectors, closes what it made, and sees threads end."""

    def __init__(self):
        self.peers = []
        self._threads = set(threading.enumerate())
        self._made = []

    def made(self, thing):
        self._made.append(thing)
        return thing

    def close(self):
        for thing in reversed(self._made):
            thing.close()
        for other in self.peers:
            other.end()
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(20)
            assert not thread.is_alive(), f"{thread} was left behind"


class ThreadPeer:
    """A peer in this process; killing it is the network's business."""

    def __init__(self, world, target, worker):
        self.worker = worker
        self._world = world
        self._alive = True
        self._going = threading.Event()
        self._going.set()
        self._thread = threading.Thread(target=target, args=(self._running,), daemon=True)
        self._thread.start()

    def _running(self):
        self._going.wait()
        return self._alive

    def kill(self):
        self._world.network.kill(self.worker)
        self._alive = False

    def stop(self):
        self._going.clear()
        self._world.network.stopped.add(self.worker)

    def go_on(self):
        self._going.set()
        self._world.network.stopped.discard(self.worker)

    def end(self):
        self._alive = False
        self._going.set()
        self._thread.join()


class InprocWorld(World):
    name = "inproc"

    def __init__(self):
        super().__init__()
        self.network = InprocNetwork()

    def bell(self):
        return InprocDoorbell()

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        return self.made(InprocListener(self.network, worker, incarnation, secret, bell))

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        return InprocConnector(self.network, worker, incarnation, secret, bell)

    def nowhere(self):
        return {"kind": "inproc", "name": "nobody"}

    def serving_peer(self, mode):
        bell = self.bell()
        listener = self.listener(bell)
        target = lambda running: peer.serve(listener, bell, mode, running)  # noqa: E731
        self.peers.append(ThreadPeer(self, target, "ew0"))
        return self.peers[-1], listener.address()

    def asking_peer(self, address, geometry):
        channel = self.connector(self.bell(), "aw9").connect("ew0", 1, address, geometry)
        slot = channel.acquire()
        channel.request(slot)[:5] = b"hello"
        channel.post(slot, 5)
        self.peers.append(ThreadPeer(self, lambda running: None, "aw9"))
        return self.peers[-1]


class ProcessPeer:
    """A peer in a process of its own."""

    def __init__(self, *args):
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), *args],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": PACKAGE},
        )

    def line(self):
        return self._process.stdout.readline()

    def kill(self):
        self._process.kill()

    def stop(self):
        self._process.send_signal(signal.SIGSTOP)
        while pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def end(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class ShmWorld(World):
    name = "shm"

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def bell(self):
        return self.made(ProcessDoorbell())

    def listener(self, bell, worker="ew0", incarnation=1, secret=peer.SECRET):
        return self.made(ShmListener(self.directory, worker, incarnation, secret, bell))

    def connector(self, bell, worker="aw0", incarnation=1, secret=peer.SECRET):
        return ShmConnector(worker, incarnation, secret, bell)

    def nowhere(self):
        return {"kind": "shm", "path": os.path.join(self.directory, "nobody.sock")}

    def serving_peer(self, mode):
        self.peers.append(ProcessPeer("serve", self.directory, mode))
        return self.peers[-1], json.loads(self.peers[-1].line())

    def asking_peer(self, address, geometry):
        self.peers.append(ProcessPeer("ask", json.dumps(address)))
        assert self.peers[-1].line() == "posted\n"
        return self.peers[-1]


@pytest.fixture(params=["inproc", pytest.param("shm", marks=pytest.mark.native)])
def world(request, tmp_path):
    if request.param == "inproc":
        made = InprocWorld()
    else:
        made = ShmWorld(str(tmp_path / "run"))
    yield made
    made.close()


@pytest.fixture
def reply_to():
    """What serving peers answer."""
    return peer.reply_to


@pytest.fixture
def pair(world):
    return Pair(world)
