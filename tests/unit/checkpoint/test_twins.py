"""The native store does what its specification does, whatever it is sent: byte for byte."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from tarragon_hpc import native
from tarragon_hpc.checkpoint.plain_requests import page_bytes
from tarragon_hpc.checkpoint.plain_store import PlainStore
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv import Run
from tarragon_hpc.wire.kv_sums import row_sum
from tests.unit.checkpoint.frames import ROW_BYTES, Client, ask, hello, put, row_of

pytestmark = pytest.mark.native
KEYS = [1, 2, 3, 1 << 63, (1 << 64) - 1, 77]
EXTREMES = [0, 1, 2, 255, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]


class Twins:
    """Two stores that get the same frames, which a random source makes up."""

    def __init__(self, seed, page_tokens, check):
        self.r = random.Random(seed)
        memory = (8 + 60 // page_tokens) * page_bytes(ROW_BYTES, page_tokens) + 5
        self.plain = PlainStore(memory, page_tokens, check, 10.0)
        self.native = native.module.KvStore(memory, page_tokens, check, 10.0)
        self.now, self.seen, self.sent = 0.0, Counter(), [b""]
        self.sequences = {1: 0, 2: 0, 3: 0, 4: 0}
        for client in (1, 2, 3):
            self.send(client, hello(sequence=0))

    def send(self, client, frame, room=4096):
        replies = []
        for store in (self.plain, self.native):
            buffer = bytearray(b"\xee" * room)
            count = store.handle(client, memoryview(frame), memoryview(buffer), self.now)
            assert buffer[count:].count(0xEE) == room - count
            replies.append(bytes(buffer[:count]))
        assert replies[0] == replies[1], frame
        if replies[0]:
            header = kv.unpack_header(replies[0])
            self.seen[header.kind, header.status] += 1
            self.seen["fetched"] += header.kind == kv.FETCH and header.rows > 0
            self.seen["dropped"] += header.kind == kv.PUT and header.runs > 0
        self.sent.append(frame)

    def same(self):
        assert self.plain.stats() == self.native.stats()
        assert self.plain.prefixes() == self.native.prefixes()

    def step(self):
        self.now += self.r.choice([0, 0, 0.1, 1.0])
        client = self.r.choice([1, 1, 1, 2, 2, 3, 4])
        action = self.r.choices(
            [self.put, self.ask, self.again, self.mangled, self.lose, self.hello],
            [60, 30, 4, 10, 2, 0.5],
        )[0]
        action(client)
        self.same()

    def next(self, client):
        self.sequences[client] += self.r.choice([1, 1, 1, 2, 1000])
        return self.sequences[client]

    def room(self):
        return self.r.choice([4096, 4096, 4096, 0, 47, 48, 60, 200, 300])

    def run(self):
        key = self.r.choice(KEYS)
        kept = self.plain._requests.kept.get(key)
        known = 0 if kept is None else kept.ledger.extent
        committed = 0 if kept is None else kept.ledger.committed
        attempt = (1 if kept is None else kept.ledger.attempt) + self.r.choice([0] * 20 + [1, -1])
        start = self.r.choice([0, committed, committed, known, known, known + 1, committed // 2])
        base = self.r.choice([0, committed, start, 5])
        return Run(
            key, min(max(0, attempt), 0xFFFFFFFF), base, start, self.r.choice([1, 1, 1, 2, 5, 20])
        )

    def put_frame(self, client):
        def sums(run, layer, p, data):
            return self.r.choices(
                [row_sum(run.key, layer, p, data), kv.SUM_ABSENT, kv.SUM_NONE, 99], [200, 4, 1, 1]
            )[0]

        first = self.r.choice([0, 0, 0, 1, 2])
        layers = self.r.choice([len(ROW_BYTES) - first, self.r.randint(0, len(ROW_BYTES) - first)])
        commit = layers == 0 or self.r.random() < 0.8
        runs = [self.run() for _ in range(self.r.choice([1, 1, 2, 5]))]
        return put(self.next(client), runs, layers, first=first, commit=commit, sums=sums)

    def put(self, client):
        self.send(client, self.put_frame(client), self.room())

    def ask_frame(self, client):
        kind = self.r.choice([kv.FREE, kv.LOOK, kv.LOOK, kv.FETCH, kv.FETCH, kv.FETCH])
        runs = [self.run() for _ in range(self.r.choice([1, 1, 1, 1, 0, 2]))]
        if kind == kv.FETCH and self.r.random() < 0.8:
            runs = [self.within(run) for run in runs]
        return ask(kind, self.next(client), *runs)

    def within(self, run):
        """About what is committed of its request, or one more."""
        committed = self.plain.prefixes().get(run.key, 0)
        start = self.r.randint(0, committed)
        return run._replace(start=start, length=self.r.randint(1, committed - start + 1))

    def ask(self, client):
        self.send(client, self.ask_frame(client), self.room())

    def again(self, client):
        self.send(client, self.r.choice(self.sent))

    def lose(self, client):
        for store in (self.plain, self.native):
            store.client_lost(client, self.now)
            store.expire(self.now)
        if client != 4:
            self.send(client, hello(sequence=self.next(client)))

    def hello(self, client):
        table = self.r.choice([ROW_BYTES, ROW_BYTES, (8, 12), (0,)])
        self.send(client, hello(table, self.next(client)))

    def mangled(self, client):
        frame = bytearray(self.r.choice([self.put_frame, self.ask_frame])(client))
        how = self.r.random()
        if how < 0.1:
            frame = bytearray(self.r.randbytes(self.r.randint(0, 200)))
        elif how < 0.3:
            del frame[self.r.randint(0, len(frame)) :]
        elif how < 0.6:
            frame[self.r.randrange(min(len(frame), 100))] = self.r.randrange(256)
        else:
            code, width = self.r.choice([("<I", 4), ("<Q", 8), ("<H", 2)])
            at = self.r.randrange(4, min(len(frame), 100)) // width * width
            value = self.r.choice(EXTREMES) & ((1 << 8 * width) - 1)
            frame[at : at + width] = struct.pack(code, value)
        self.send(client, bytes(frame))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("page_tokens", [1, 3, 16])
def test_both_give_the_same_answers(page_tokens, check):
    seen, stats = Counter(), Counter()
    for seed in range(4):
        twins = Twins(seed, page_tokens, check)
        for _ in range(1000):
            twins.step()
        seen += twins.seen
        stats += Counter(twins.plain.stats())
    for kind in (kv.PUT, kv.FREE, kv.LOOK, kv.FETCH, kv.HELLO):
        assert seen[kind, kv.STATUS_OK], seen
        assert seen[kind, kv.STATUS_BAD], seen
    for status in (kv.STATUS_UNKNOWN, kv.STATUS_STALE, kv.STATUS_SHORT):
        assert seen[kv.FETCH, status], seen
    assert seen["fetched"] > 20, seen
    assert seen["dropped"] > 100, seen
    assert stats["kv_evicted"], stats
    assert stats["kv_dropped_runs"], stats
    assert bool(stats["kv_bad_rows"]) is check, stats


@pytest.mark.parametrize("size", [1, 7, 8, 9, 239, 240, 241, 2039, 2040, 2048, 4096, 4103])
def test_rows_of_any_length_have_the_same_sum(size):
    client = Client(native.module.KvStore(1 << 20), row_bytes=(size,))

    def row(run, layer, p):
        return (row_of(run.key, 0, p) * (size // 8 + 1))[:size]

    assert client.put(Run(5, 1, 0, 0, 3), row=row) == []
    rows = client.fetch(5, 0, 3).rows
    assert [data for ((_, data),) in rows] == [row(Run(5, 1, 0, 0, 3), 0, p) for p in range(3)]
