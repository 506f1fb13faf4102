"""An expert server without native code: a bank that shows what ran, and AWs in this process."""

from __future__ import annotations

import ctypes
import threading

import numpy as np

from tarragon_hpc.config.schema import BatchingConfig
from tarragon_hpc.expert.server import ExpertServer
from tarragon_hpc.models.spec import ExpertShape, ModelSpec
from tarragon_hpc.transport.base import Geometry
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.wire import dispatch as wire

HIDDEN = 16
LAYERS = (1, 2, 5)
EXPERTS = frozenset({0, 3, 4})
ROWS, TOP_K = 8, 2
SECRET = b"x" * 32
SPEC = ModelSpec(
    "", "mixtral", "", "float32", 6, LAYERS, 6, TOP_K, ExpertShape(HIDDEN, 8), 10, 10, (), None
)  # fmt: skip
GEOMETRY = Geometry(4, *wire.slot_geometry(ROWS, TOP_K, len(EXPERTS), HIDDEN, 4))


def array(address, shape, dtype):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(memoryview(raw), dtype).reshape(shape)


class Bank:
    """y = x * (expert + 1) + layer, with a record of what ran together."""

    def __init__(self):
        self.batches = []
        self.fail = False
        self.full = False
        self.held = set(EXPERTS)

    def experts(self):
        return frozenset(self.held)

    def prepare(self, tensors):
        return {expert for _, expert in tensors}

    def add(self, prepared):
        if self.full:
            raise RuntimeError("no room")
        self.held |= prepared

    def remove(self, experts):
        self.held -= set(experts)

    def nbytes(self):
        return 0

    def run(self, layer, segments):
        if self.fail:
            raise RuntimeError("out of memory")
        assert {s.expert for s in segments} <= self.held
        self.batches.append((layer, sorted(s.expert for s in segments)))
        for s in segments:
            index = array(s.index, (s.count,), np.uint32)
            x = array(s.x, (ROWS, HIDDEN), np.float32)[index]
            array(s.y, (s.count, HIDDEN), np.float32)[:] = x * (s.expert + 1) + layer


class World:
    """One EW, and the AWs that a test connects to it."""

    def __init__(self, *, shares_cpus=False, **batching):
        self.network, self.bell, self.bank = InprocNetwork(), InprocDoorbell(), Bank()
        self.listener = InprocListener(self.network, "ew0", 1, SECRET, self.bell)
        self.server = ExpertServer(
            self.bank,
            self.listener,
            self.bell,
            SPEC,
            7,
            BatchingConfig(**batching),
            shares_cpus=shares_cpus,
        )

    def connect(self, worker="aw0", incarnation=1, geometry=GEOMETRY):
        connector = InprocConnector(self.network, worker, incarnation, SECRET, InprocDoorbell())
        return connector.connect("ew0", 1, self.listener.address(), geometry)

    def step(self, times=1):
        for _ in range(times):
            self.server.step(longest_s=0)


def rows(count=ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


def pack(
    x, groups, *, layer=1, incarnation=1, sequence=5, epoch=3, flags=0, dtype=0, hidden=HIDDEN,
    pairs=None, rows=None,
):  # fmt: skip
    """A dispatch; `groups` is [(expert, [row, …]), …]."""
    index = [row for _, reads in groups for row in reads]
    header = wire.RequestHeader(
        dtype, flags, incarnation, epoch, sequence, layer, len(x) if rows is None else rows,
        len(index) if pairs is None else pairs, len(groups), hidden,
    )  # fmt: skip
    tables = [n for expert, reads in groups for n in (expert, len(reads))] + index
    head = wire.pack_request_header(header) + np.array(tables, "<u4").tobytes()
    return head.ljust(wire.rows_offset(len(groups), len(index)), b"\0") + x.tobytes()


def post(channel, data):
    slot = channel.acquire()
    channel.request(slot)[: len(data)] = data
    channel.post(slot, len(data))
    return slot


def outputs(reply, pairs):
    start = wire.HEADER_BYTES
    return np.frombuffer(reply, np.float32, pairs * HIDDEN, start).reshape(pairs, HIDDEN)


def status_of(channel, slot):
    return wire.unpack_reply_header(channel.reply(slot)).status


GROUPS = [(0, [0, 2, 7]), (4, [1, 2])]


def serve(world):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(world.server.serve()), name="ew")
    thread.start()
    return thread, ended


def ask(channel, data):
    seen = channel.bell.value()
    slot = post(channel, data)
    while channel.reply(slot) is None:
        assert channel.lost is None
        seen = channel.bell.wait(seen, 10)
    return slot
