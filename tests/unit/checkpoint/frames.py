"""Frames as an AW would send them, for rows that tell what they are."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv_sums import row_sum

ROW_BYTES = (8, 12, 20)


def row_of(key, layer, position, attempt=1, row_bytes=ROW_BYTES):
    """The bytes of a row, at most 64, which nothing but this row of this attempt has."""
    seed = struct.pack("<QIII", key, layer, position, attempt)
    return hashlib.blake2b(seed, digest_size=row_bytes[layer]).digest()


def token_of(position, attempt=1):
    return (1000 * attempt + position) % (1 << 32)


def hello(row_bytes=ROW_BYTES, sequence=0):
    body = struct.pack(f"<{len(row_bytes)}I", *row_bytes)
    return (
        kv.pack_header(kv.Header(kv.HELLO, 0, 0, sequence, 0, 0, 0, len(row_bytes), len(body)))
        + body
    )


def put(
    sequence, runs, layers=None, *, first=0, commit=True, row_bytes=ROW_BYTES, sums=None, row=None,
    flags=None,
):  # fmt: skip
    """A Put of `layers` layers; `sums` and `row`: (run, layer, position[, row]) → what to send."""
    layers = len(row_bytes) - first if layers is None else layers
    row = row or (lambda run, layer, p: row_of(run.key, layer, p, run.attempt, row_bytes))
    sums = sums or (lambda run, layer, p, data: row_sum(run.key, layer, p, data))
    each = [(run, p) for run in runs for p in range(run.start, run.start + run.length)]
    rows, data, table = len(each), b"", []
    for layer in range(first, first + layers):
        for run, p in each:
            one = row(run, layer, p)
            table.append(sums(run, layer, p, one))
            data += one
    tokens = [token_of(p, run.attempt) for run, p in each] if commit else []
    head = b"".join(map(kv.pack_run, runs)) + struct.pack(
        f"<{len(tokens) + len(table)}I", *tokens, *table
    )
    payload = kv.put_payload(len(runs), rows, layers, commit=commit)
    body = head.ljust(payload - kv.HEADER_BYTES, b"\0") + data
    flags = kv.FLAG_COMMIT * commit if flags is None else flags
    header = kv.Header(kv.PUT, flags, 0, sequence, len(runs), rows, first, layers, len(body))
    return kv.pack_header(header) + body


def ask(kind, sequence, *runs):
    """A Free, Look or Fetch."""
    body = b"".join(map(kv.pack_run, runs))
    return kv.pack_header(kv.Header(kind, 0, 0, sequence, len(runs), 0, 0, 0, len(body))) + body


class Fetched(NamedTuple):
    """The answer to a Fetch: for each position, (sum, row) of each layer."""

    header: kv.Header
    rows: list[list[tuple[int, bytes]]]


def read_fetch(answer, row_bytes=ROW_BYTES):
    header = kv.unpack_header(answer)
    sums = struct.unpack_from(f"<{header.rows * header.layers}I", answer, kv.HEADER_BYTES)
    at = kv.fetch_payload(header.rows, header.layers)
    rows = []
    for i in range(header.rows):
        rows.append([])
        for layer, size in enumerate(row_bytes):
            rows[-1].append((sums[i * header.layers + layer], bytes(answer[at : at + size])))
            at += size
    assert len(answer) == (at if rows else kv.HEADER_BYTES)
    return Fetched(header, rows)


def read_numbers(answer):
    """The dropped keys of a Put, the token ids of a Look."""
    header = kv.unpack_header(answer)
    code = "Q" if header.kind == kv.PUT else "I"
    return list(memoryview(bytes(answer[kv.HEADER_BYTES :])).cast(code))


class Client:
    """One channel of a store: counts its frames and reads its answers."""

    def __init__(self, store, number=1, room=1 << 16, row_bytes=ROW_BYTES):
        self.store, self.number, self.now, self.sequence = store, number, 0.0, 0
        self.row_bytes = row_bytes
        self.buffer = bytearray(room)
        assert self.status(hello(row_bytes, self.next())) == kv.STATUS_OK

    def next(self):
        self.sequence += 1
        return self.sequence

    def send(self, frame):
        n = self.store.handle(self.number, memoryview(frame), memoryview(self.buffer), self.now)
        return bytes(self.buffer[:n])

    def status(self, frame):
        return kv.unpack_header(self.send(frame)).status

    def put(self, *runs, **options):
        """Keys that were dropped."""
        options.setdefault("row_bytes", self.row_bytes)
        answer = self.send(put(self.next(), runs, **options))
        assert kv.unpack_header(answer).status == kv.STATUS_OK
        return read_numbers(answer)

    def look(self, key, attempt=1):
        """Status and token ids."""
        answer = self.send(ask(kv.LOOK, self.next(), kv.Run(key, attempt, 0, 0, 0)))
        header = kv.unpack_header(answer)
        tokens = read_numbers(answer)
        assert header.rows == len(tokens)
        return header.status, tokens

    def fetch(self, key, start, length, attempt=1):
        frame = ask(kv.FETCH, self.next(), kv.Run(key, attempt, 0, start, length))
        return read_fetch(self.send(frame), self.row_bytes)

    def free(self, *runs):
        assert self.status(ask(kv.FREE, self.next(), *runs)) == kv.STATUS_OK
