"""A simulated world of EWs around one REFE: one thread, a clock that only waiting moves."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tarragon_hpc.datapath.combine import STORAGE, combine, from_float32, to_float32
from tarragon_hpc.datapath.ert import ERT
from tarragon_hpc.datapath.refe import Refe
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.transport.shm import ShmConnector, ShmListener
from tarragon_hpc.wire import dispatch as wire
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.parse import parse_dispatch

SECRET = b"s" * 32


def expert_output(rows, expert, dtype):
    """What expert `expert` makes of rows: something that tells experts and rows apart."""
    return from_float32(to_float32(rows, dtype) * np.float32(expert + 1) + np.float32(0.5), dtype)


class SimEw:
    """An EW. `mode`: answer, mute (keeps requests), or a function that spoils the reply header."""

    def __init__(self, world, name, incarnation=1):
        self.name = name
        self.incarnation = incarnation
        self.mode = "answer"
        self.requests = []  # headers of all that came
        self.kept = []
        self.most_kept = 0
        self._listener = world.listener(name, incarnation)
        self._channels = []

    def peer(self):
        return Peer(self.name, self.incarnation, self._listener.address())

    def receive(self):
        """Take what has come; True if anything has."""
        self._channels += self._listener.accepted()
        came = [(c, r) for c in self._channels for r in iter(c.poll, None) if r is not None]
        for channel, request in came:
            parsed = parse_dispatch(request.data, channel.geometry.reply_bytes)
            self.requests.append(parsed.header)
            self.kept.append((channel, request, parsed))
        self.most_kept = max(self.most_kept, len(self.kept))
        return bool(came)

    def answer(self, last_first=False):
        """Answer everything kept."""
        for channel, request, parsed in reversed(self.kept) if last_first else self.kept:
            h = parsed.header
            dtype = wire.DTYPE_NAMES[h.dtype]
            start = wire.rows_offset(h.groups, h.pairs)
            x = np.frombuffer(request.data, np.uint8)[start:].view(STORAGE[dtype])
            x = x.reshape(h.rows, h.hidden)
            index = np.frombuffer(parsed.pair_rows, np.uint32)
            header = wire.ReplyHeader(
                h.dtype, 0, self.incarnation, h.epoch, h.sequence, h.layer, h.rows, h.pairs,
                h.hidden, 1,
            )  # fmt: skip
            if callable(self.mode):
                header = self.mode(header)
            data = wire.pack_reply_header(header)
            for expert, first, count in parsed.groups:
                data += expert_output(x[index[first : first + count]], expert, dtype).tobytes()
            channel.reply(request.slot)[: len(data)] = data
            channel.send(request.slot, len(data))
        self.kept = []

    def step(self):
        came = self.receive()
        if self.mode != "mute":
            self.answer(last_first=True)
        return came

    def close(self):
        self._listener.close()
        for channel in self._channels:
            channel.close()


class SimWorld:
    """`ews` by name; `refe(...)` makes the engine; `now` moves by a second when all wait."""

    timeout_s = 10.0
    missing_s = 30.0

    @staticmethod
    def spawn(job):
        job()

    def __init__(self):
        self.network = InprocNetwork()
        self.ews = {}
        self.now = 0.0
        self.made = None
        self.waits = 0
        self.tick = 1.0
        self.stopping = False  # whether mute EWs are stopped processes
        self.at = {}

    def clock(self):
        return self.now

    def listener(self, name, incarnation):
        bell = InprocDoorbell(lambda: False)
        return InprocListener(self.network, name, incarnation, SECRET, bell)

    def connector(self):
        bell = InprocDoorbell(self.on_wait)
        return bell, InprocConnector(self.network, "aw0", 5, SECRET, bell)

    def ew(self, name, incarnation=1):
        self.ews[name] = SimEw(self, name, incarnation)
        return self.ews[name]

    def unmute(self):
        for ew in self.ews.values():
            ew.mode = "answer"
            ew.answer()

    def on_wait(self):
        """Others have their turn; before that, what is to happen at this wait (`at`)."""
        self.waits += 1
        due = self.at.pop(self.waits, None)
        if callable(due):
            due()
        else:
            for kind, name in due or ():
                self.fault(kind, name)
        stopped = {name for name, ew in self.ews.items() if ew.mode == "mute"}
        self.network.stopped = stopped if self.stopping else set()
        if not sum(ew.step() for ew in self.ews.values()):
            self.now += self.tick
            return False
        return True

    def kill(self, name):
        self.network.kill(name)
        del self.ews[name]

    def refe(self, *, experts=4, top_k=2, hidden=8, dtype="float32", slots=2, slot_rows=4, **more):
        bell, connector = self.connector()
        self.reports = []
        self.made = Refe(
            worker="aw0",
            incarnation=5,
            connector=connector,
            bell=bell,
            experts=experts,
            top_k=top_k,
            hidden=hidden,
            dtype=dtype,
            slots=slots,
            slot_rows=slot_rows,
            reply_timeout_s=self.timeout_s,
            report=self.reports.append,
            spawn=self.spawn,
            clock=self.clock,
            **{"missing_timeout_s": self.missing_s} | more,
        )
        return self.made

    def table(self, epoch, candidates):
        return ERT.of(epoch, candidates), {n: e.peer() for n, e in self.ews.items()}


class ShmWorld(SimWorld):
    """The same over shared memory: the EWs step in a thread, and time is real."""

    timeout_s = 0.2
    missing_s = 2.0

    def __init__(self, directory):
        super().__init__()
        self.clock = time.monotonic
        self.lock = threading.Lock()
        self._directory = directory
        self._bells = [ProcessDoorbell(), ProcessDoorbell()]
        self._running = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while self._running:
            seen = self._bells[0].value()
            with self.lock:
                for ew in self.ews.values():
                    ew.step()
            self._bells[0].wait(seen, 0.05)

    def listener(self, name, incarnation):
        return ShmListener(self._directory, name, incarnation, SECRET, self._bells[0])

    def connector(self):
        return self._bells[1], ShmConnector("aw0", 5, SECRET, self._bells[1])

    def kill(self, name):
        with self.lock:
            self.ews.pop(name).close()

    def close(self):
        if self.made is not None:
            self.made.close()
        self._running = False
        self._thread.join()
        for closable in (*self.ews.values(), *self._bells):
            closable.close()


class Batch:
    """Random arguments of one `expert_io`, and the result it must have."""

    def __init__(self, tokens, *, experts=4, top_k=2, hidden=8, dtype="float32", seed=0, only=None):
        rng = np.random.default_rng(seed)
        self.hidden = from_float32(rng.standard_normal((tokens, hidden)).astype(np.float32), dtype)
        allowed = np.array(sorted(only or range(experts)))
        order = np.argsort(rng.random((tokens, len(allowed))), axis=1)[:, :top_k]
        self.ids = allowed[order].astype(np.int32)
        self.weights = rng.random((tokens, top_k)).astype(np.float32)
        self.out = np.zeros((tokens, hidden), STORAGE[dtype])
        outputs = np.zeros((tokens, top_k, hidden), STORAGE[dtype])
        for t, j in np.ndindex(tokens, top_k):
            outputs[t, j] = expert_output(self.hidden[t], int(self.ids[t, j]), dtype)
        self.expected = combine(outputs, self.weights, dtype) if tokens else self.out

    def run(self, refe, layer=0):
        refe.expert_io(layer, self.hidden, self.ids, self.weights, self.out)
        return self

    def dispatch(self, refe, layer=0):
        addresses = self.hidden.ctypes.data, self.ids.ctypes.data
        return refe.dispatch(layer, len(self.hidden), *addresses)

    def combine(self, refe, ticket):
        refe.combine(ticket, self.weights.ctypes.data, self.out.ctypes.data)

    @property
    def right(self):
        return self.out.tobytes() == self.expected.tobytes()


@pytest.fixture
def sim():
    world = SimWorld()
    yield world
    if world.made is not None:
        world.made.close()


@pytest.fixture
def make_sim():
    """For hypothesis, which wants a fresh world per example."""
    return SimWorld


@pytest.fixture
def shm_sim(tmp_path):
    world = ShmWorld(str(tmp_path / "run"))
    yield world
    world.close()


@pytest.fixture
def batch():
    return Batch
