"""A checkpoint store that believes everything, and the world around a courier, for tests."""

from __future__ import annotations

import struct
import threading
import time

import numpy as np

from tarragon_hpc.checkpoint.courier import Courier
from tarragon_hpc.config.schema import CheckpointConfig
from tarragon_hpc.transport.inproc import (
    InprocConnector,
    InprocDoorbell,
    InprocListener,
    InprocNetwork,
)
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.kv_sums import row_sum

SECRET = b"s" * 32


def row(key, layer, position, nbytes):
    """The KV row of a position: bytes that tell everything apart."""
    seed = f"{key}/{layer}/{position}/".encode()
    return (seed * (nbytes // len(seed) + 1))[:nbytes]


def token(key, position):
    """The token id at a position."""
    return (key * 31 + position) % 50_000


def fill(batch):
    """Do what the engine thread does with a batch."""
    for layer, nbytes in enumerate(batch.layout.row_bytes):
        rows = batch.rows(layer)
        for r in range(batch.count):
            data = row(int(batch.keys[r]), layer, int(batch.positions[r]), nbytes)
            rows[r] = np.frombuffer(data, np.uint8)
    pairs = zip(batch.keys.tolist(), batch.positions.tolist(), strict=True)
    return np.array([token(k, p) for k, p in pairs], np.uint32)


class FakeStore:
    """Keeps rows as they come, by (key, layer, position), and token ids by (key, position).

    drop: keys whose runs it says it has dropped; status: of every answer but Hello's;
    spoil: flips a byte of the rows that Fetch gives at these positions
    """

    def __init__(self, world, name="cs0", incarnation=1):
        self.name = name
        self.incarnation = incarnation
        self.row_bytes = ()
        self.rows = {}
        self.tokens = {}
        self.attempts = {}
        self.frames = []  # headers, in the order in which they came
        self.freed = []
        self.drop = set()
        self.status = kv.STATUS_OK
        self.hello = kv.STATUS_OK
        self.spoil = set()
        self.bell = InprocDoorbell()
        self._listener = InprocListener(world.network, name, incarnation, SECRET, self.bell)
        self._channels = []
        self._stop = False
        self._thread = None

    def peer(self):
        return Peer(self.name, self.incarnation, self._listener.address())

    def step(self):
        """Answer all that has come."""
        self._channels += self._listener.accepted()
        for channel in self._channels:
            while (request := channel.poll()) is not None:
                answer = self.handle(request.data, channel.geometry.reply_bytes)
                channel.reply(request.slot)[: len(answer)] = answer
                channel.send(request.slot, len(answer))

    def start(self):
        """Answer in a thread until `stop`."""
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self):
        self._stop = True
        self.bell.ring()
        self._thread.join()

    def _run(self):
        while not self._stop:
            seen = self.bell.value()
            self.step()
            self.bell.wait(seen, 0.5)

    def committed(self, key):
        """How many positions are there, from 0."""
        count = 0
        while (key, count) in self.tokens and all(
            (key, layer, count) in self.rows for layer in range(len(self.row_bytes))
        ):
            count += 1
        return count

    def check(self, key, positions):
        """These positions are there, and are what they should be."""
        for p in positions:
            assert self.tokens[key, p] == token(key, p)
            for layer, nbytes in enumerate(self.row_bytes):
                total, data = self.rows[key, layer, p]
                assert data == row(key, layer, p, nbytes)
                assert total == row_sum(key, layer, p, data)

    def handle(self, frame, reply_bytes):
        header = kv.unpack_header(frame)
        self.frames.append(header)
        assert kv.HEADER_BYTES + header.body == len(frame)
        status, b, a, body = self._answer(header, frame, reply_bytes)
        answer = kv.Header(header.kind, 0, status, header.sequence, b, a, 0, 0, len(body))
        return kv.pack_header(answer) + body

    def _answer(self, header, frame, reply_bytes):
        if header.kind == kv.HELLO:
            self.row_bytes = struct.unpack_from(f"<{header.layers}I", frame, kv.HEADER_BYTES)
            return self.hello, 0, 0, b""
        if self.status != kv.STATUS_OK:
            return self.status, 0, 0, b""
        runs = kv.unpack_runs(frame, header)
        if header.kind == kv.PUT:
            dropped = [run.key for run in runs if run.key in self.drop]
            self._put(header, runs, frame)
            return 0, len(dropped), 0, struct.pack(f"<{len(dropped)}Q", *dropped)
        if header.kind == kv.FREE:
            self.freed += [(run.key, run.attempt) for run in runs]
            return 0, 0, 0, b""
        key = runs[0].key
        count = self.committed(key)
        if header.kind == kv.LOOK:
            if not count:
                return kv.STATUS_UNKNOWN, 0, 0, b""
            if runs[0].attempt < self.attempts[key]:
                return kv.STATUS_STALE, 0, 0, b""
            tokens = [self.tokens[key, p] for p in range(count)]
            return 0, 0, count, struct.pack(f"<{count}I", *tokens)
        return self._fetch(runs[0], count, reply_bytes)

    def _put(self, header, runs, frame):
        rows, layers = header.rows, header.layers
        places = [(run.key, run.start + i) for run in runs for i in range(run.length)]
        assert len(places) == rows
        self.attempts.update({run.key: run.attempt for run in runs})
        at = kv.HEADER_BYTES + kv.RUN_BYTES * len(runs)
        if header.flags & kv.FLAG_COMMIT:
            tokens = struct.unpack_from(f"<{rows}I", frame, at)
            self.tokens.update(zip(places, tokens, strict=True))
            at += 4 * rows
        sums = struct.unpack_from(f"<{rows * layers}I", frame, at)
        at = kv.put_payload(len(runs), rows, layers, commit=bool(header.flags & kv.FLAG_COMMIT))
        for index in range(layers):
            layer = header.first_layer + index
            for r, (key, position) in enumerate(places):
                stop = at + self.row_bytes[layer]
                self.rows[key, layer, position] = (sums[index * rows + r], bytes(frame[at:stop]))
                at = stop
        assert at == len(frame) or not layers

    def _fetch(self, run, count, reply_bytes):
        if run.start + run.length > count:
            return kv.STATUS_SHORT, 0, 0, b""
        layers = range(len(self.row_bytes))
        cells = [
            self.rows[run.key, layer, run.start + i] for i in range(run.length) for layer in layers
        ]
        head = struct.pack(f"<{len(cells)}I", *(total for total, _ in cells))
        head = head.ljust(kv.fetch_payload(run.length, len(layers)) - kv.HEADER_BYTES, b"\0")
        body = bytearray(head + b"".join(data for _, data in cells))
        for position in self.spoil & set(range(run.start, run.start + run.length)):
            body[len(head) + (position - run.start) * sum(self.row_bytes)] ^= 1
        assert kv.HEADER_BYTES + len(body) <= reply_bytes
        return 0, 0, run.length, bytes(body)


class World:
    """A courier and its stores in one process."""

    def __init__(self, row_bytes=(8, 8, 24), **config):
        self.network = InprocNetwork()
        self.bell = InprocDoorbell()
        connector = InprocConnector(self.network, "aw0", 1, SECRET, self.bell)
        config = {"stores": 1, "queue": 1 << 16, "slot_bytes": 512} | config
        self.courier = Courier(
            connector, self.bell, row_bytes, CheckpointConfig.model_validate(config)
        )
        self.stores = []

    def __enter__(self):
        self.courier.start()
        return self

    def __exit__(self, *_):
        self.courier.close()
        for store in self.stores:
            store.stop()

    def serve(self, *names):
        """Start stores and wait until they are connected."""
        self.stores += [FakeStore(self, name).start() for name in names]
        self.courier.set_stores([s.peer() for s in self.stores])
        self.wait(lambda: len(self.courier.stores) == len(self.stores))
        return self.stores[-1]

    def wait(self, condition, timeout_s=5.0):
        """Wait for something to become true."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"did not come true: {self.courier}"
            time.sleep(0.002)
