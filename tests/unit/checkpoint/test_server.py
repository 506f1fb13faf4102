"""The loop between channels and the store; first without native code, then as it is in a run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from tarragon_hpc.checkpoint.plain_store import PlainStore
from tarragon_hpc.checkpoint.server import StoreServer
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv import Run
from tests.unit.checkpoint.frames import ROW_BYTES, ask, hello, put, read_fetch, read_numbers

SECRET = bytes(range(32))
GEOMETRY = Geometry(4, 8192, 8192)
SOON_S = 30.0


class Aw:
    """The client's end: frames by slot, answers in order."""

    def __init__(self, channel, bell):
        self.channel, self.bell, self.posted = channel, bell, []

    def post(self, frame):
        slot = self.channel.acquire()
        self.channel.request(slot)[: len(frame)] = frame
        self.channel.post(slot, len(frame))
        self.posted.append(slot)

    def answers(self):
        """All that are there, as bytes."""
        found = []
        while self.posted and (reply := self.channel.reply(self.posted[0])) is not None:
            found.append(bytes(reply))
            self.channel.release(self.posted.pop(0))
        return found

    def ask(self, frame):
        """Post, wait and return the answer."""
        self.post(frame)
        end = time.monotonic() + SOON_S
        while time.monotonic() < end:
            seen = self.bell.value()
            for answer in self.answers():
                return answer
            assert self.channel.lost is None
            self.bell.wait(seen, SOON_S)
        raise AssertionError("no answer")


class World:
    """A store's server in this thread, AWs beside it; what is handled is noted."""

    def __init__(self):
        self.network, self.bell = InprocNetwork(), InprocDoorbell()
        self.store, self.order = PlainStore(1 << 16), []
        handle = self.store.handle

        def noted(client, *arguments):
            self.order.append(client)
            return handle(client, *arguments)

        self.store.handle = noted
        listener = InprocListener(self.network, "cs0", 1, SECRET, self.bell)
        self.server = StoreServer(self.store, listener, self.bell)
        self.address = listener.address()

    def connect(self, worker="aw0", incarnation=1):
        bell = InprocDoorbell()
        connector = InprocConnector(self.network, worker, incarnation, SECRET, bell)
        aw = Aw(connector.connect("cs0", 1, self.address, GEOMETRY), bell)
        aw.post(hello())
        self.server.step(0)
        assert [kv.unpack_header(a).status for a in aw.answers()] == [kv.STATUS_OK]
        return aw


@pytest.fixture
def world():
    return World()


def status_of(answer):
    return kv.unpack_header(answer).status


def test_clients_take_turns(world):
    first, second = world.connect("aw0"), world.connect("aw1")
    for sequence in (1, 2, 3):
        first.post(put(sequence, [Run(1, 1, 0, sequence - 1, 1)]))
    second.post(put(1, [Run(2, 1, 0, 0, 1)]))
    world.order.clear()
    for _ in range(3):
        world.server.step(0)
    assert world.order == [1, 2, 1, 1]
    assert [status_of(a) for a in first.answers() + second.answers()] == [kv.STATUS_OK] * 4
    assert world.store.prefixes() == {1: 3, 2: 1}


def test_an_aw_that_sends_nonsense_is_told_and_complained_of_once(world, caplog):
    rude, polite = world.connect("aw0"), world.connect("aw1")
    for frame in (b"", b"\xff" * 200, put(1, [Run(1, 1, 0, 0, 1)])):
        rude.post(frame)
        polite.post(ask(kv.LOOK, 1, Run(1, 1, 0, 0, 0)))
        world.server.step(0)
    assert [status_of(a) for a in rude.answers()] == [kv.STATUS_BAD, kv.STATUS_BAD, kv.STATUS_OK]
    assert len(polite.answers()) == 3
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    assert rude.channel.lost is None


@pytest.mark.parametrize("how", ["killed", "replaced"])
def test_what_a_lost_aw_wrote_is_an_orphan(how, world):
    aw = world.connect("aw0")
    aw.post(put(1, [Run(1, 1, 0, 0, 3)]))
    world.server.step(0)
    world.network.kill("aw0") if how == "killed" else world.connect("aw0", incarnation=2)
    world.server.step(0)
    assert world.store._requests.kept[1].orphaned is not None
    assert world.store.prefixes() == {1: 3}
    world.store.expire(time.monotonic() + 61)
    assert world.store.prefixes() == {}


def test_orphans_are_forgotten_though_nobody_sends(world, monkeypatch):
    world.connect("aw0").post(put(1, [Run(1, 1, 0, 0, 3)]))
    world.server.step(0)
    world.network.kill("aw0")
    world.server.step(0)
    late = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: late)
    world.server.step(0)
    assert world.server.stats()["kv_requests"] == 0


def test_it_sleeps_until_there_is_something_and_stops_when_told(world):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(world.server.serve()), daemon=True)
    thread.start()
    bell = InprocDoorbell()
    connector = InprocConnector(world.network, "aw0", 1, SECRET, bell)
    aw = Aw(connector.connect("cs0", 1, world.address, GEOMETRY), bell)
    assert status_of(aw.ask(hello())) == kv.STATUS_OK
    world.server.stop("enough")
    world.server.stop("more than that")
    thread.join(SOON_S)
    assert ended == ["enough"]
    assert aw.channel.lost is not None
    assert world.network.listeners == {}


# As in a run: shared memory, the native store, and an AW that is a process of its own

AW_PROGRAM = """
import json, sys, time
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.shm import ShmConnector
from tests.unit.checkpoint.frames import hello, put
from tests.unit.checkpoint.test_server import GEOMETRY, SECRET, Aw, Run
bell = ProcessDoorbell()
channel = ShmConnector("aw0", 1, SECRET, bell).connect("cs0", 1, json.loads(sys.argv[1]), GEOMETRY)
aw = Aw(channel, bell)
aw.ask(hello())
for step in range(30):
    aw.ask(put(1 + step, [Run(1, 1, 0, step, 1)]))
print("protected", flush=True)
time.sleep(600)
"""


@pytest.mark.native
def test_another_aw_goes_on_with_what_a_killed_one_has_left():
    from tarragon_hpc import native
    from tarragon_hpc.transport.bell import ProcessDoorbell
    from tarragon_hpc.transport.shm import ShmConnector, ShmListener

    bell = ProcessDoorbell(0)
    store = native.module.KvStore(1 << 20)
    with tempfile.TemporaryDirectory(prefix="tarragon-") as directory:
        listener = ShmListener(directory, "cs0", 1, SECRET, bell)
        server = StoreServer(store, listener, bell)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        address = listener.address()
        command = [sys.executable, "-c", AW_PROGRAM, json.dumps(address)]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                said = process.stdout.readline()
                process.send_signal(signal.SIGKILL)
            assert said == b"protected\n"
            aw_bell = ProcessDoorbell()
            connector = ShmConnector("aw1", 1, SECRET, aw_bell)
            aw = Aw(connector.connect("cs0", 1, address, GEOMETRY), aw_bell)
            aw.ask(hello())
            taken = aw.ask(ask(kv.LOOK, 1, Run(1, 2, 0, 0, 0)))
            assert (status_of(taken), len(read_numbers(taken))) == (kv.STATUS_OK, 30)
            rows = read_fetch(aw.ask(ask(kv.FETCH, 2, Run(1, 2, 0, 0, 29))), ROW_BYTES).rows
            assert len(rows) == 29
            assert read_numbers(aw.ask(put(3, [Run(1, 2, 29, 29, 2)]))) == []
            assert store.prefixes() == {1: 31}
            aw.channel.close()
        finally:
            server.stop("end of test")
            thread.join(SOON_S)
        assert not thread.is_alive()
