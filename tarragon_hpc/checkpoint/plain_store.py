"""The checkpoint store without native code: the specification of `kernels/kv_store.cpp`.

Frames in, answers out (`wire/kv.py`); nothing here waits, sends or keeps time. A frame that makes
no sense is answered with STATUS_BAD and changes nothing, whatever it is.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tarragon_hpc.checkpoint.plain_frames import Put, in_range, parse_put, rows_that_fit
from tarragon_hpc.checkpoint.plain_requests import Kept, Requests, page_bytes
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv
from tarragon_hpc.wire.kv_sums import row_sum

MAX_PAGE_TOKENS = 4096
ORPHAN_S = 60.0


class _Answer(NamedTuple):
    """What goes back beside kind and sequence; b and a are `runs` and `rows` of the header."""

    status: int = kv.STATUS_OK
    b: int = 0
    a: int = 0
    layers: int = 0
    body: bytes = b""


_BAD = _Answer(kv.STATUS_BAD)


class PlainStore:
    """Keeps KV rows of requests, in memory of fixed size.

    memory: bytes for rows and their tables; page_tokens: positions of a page, 1 … 4096
    check: verify the sums of rows on arrival
    orphan_s: seconds after which the requests of a lost client are forgotten

    The layers and the bytes of their rows are told by the first client's Hello. A *client* is a
    number that the caller gives to each channel, never twice; `now` is in seconds of one clock that
    never goes back. Raises ValueError for a memory or a page out of range.
    """

    def __init__(
        self, memory: int, page_tokens: int = 16, check: bool = True, orphan_s: float = ORPHAN_S
    ) -> None:
        if memory <= 0:
            raise ValueError(f"memory: {memory} bytes; expected more than 0")
        if not 1 <= page_tokens <= MAX_PAGE_TOKENS:
            raise ValueError(f"page_tokens: {page_tokens}; expected 1 to {MAX_PAGE_TOKENS}")
        self._memory = memory
        self._page_tokens = page_tokens
        self._check = check
        self._orphan_s = orphan_s
        self._row_bytes: tuple[int, ...] = ()
        self._page_bytes = 0
        self._requests = Requests(0, page_tokens, orphan_s)
        self._sequences: dict[int, int] = {}  # newest of each client that said a good Hello
        self._refused: set[int] = set()
        self._bad_rows = self._dropped_runs = self._received = 0

    def __repr__(self) -> str:
        return f"PlainStore({len(self._requests.kept)} requests, {len(self._sequences)} clients)"

    def handle(self, client: int, frame: memoryview, reply: memoryview, now: float) -> int:
        """Do what a frame says and write the answer into `reply`; returns the answer's bytes.

        Orphans whose time is over are forgotten first. 0: `reply` is too short for any answer.
        """
        self.expire(now)
        room = len(reply) - kv.HEADER_BYTES
        if room < 0:
            return 0
        try:
            header = kv.unpack_header(frame)
        except FrameError:
            header = kv.Header(0, 0, 0, 0, 0, 0, 0, 0, 0)
        status, b, a, layers, content = self._answer(client, header, frame, room)
        answer = kv.Header(header.kind, 0, status, header.sequence, b, a, 0, layers, len(content))
        whole = kv.pack_header(answer) + content
        reply[: len(whole)] = whole
        return len(whole)

    def client_lost(self, client: int, now: float) -> None:
        """The channel is gone; what its client wrote last are orphans from now on."""
        self._sequences.pop(client, None)
        self._refused.discard(client)
        self._requests.orphan(client, now)

    def expire(self, now: float) -> None:
        """Forget the orphans whose time is over."""
        self._requests.expire(now)

    def stats(self) -> dict[str, float]:
        """Counters since the start and what is kept now. From any thread."""
        return {
            "kv_requests": len(self._requests.kept),
            "kv_used_bytes": self._requests.used * self._page_bytes,
            "kv_capacity_bytes": self._memory,
            "kv_evicted": self._requests.evicted,
            "kv_bad_rows": self._bad_rows,
            "kv_dropped_runs": self._dropped_runs,
            "kv_received_bytes": self._received,
        }

    def prefixes(self) -> dict[int, int]:
        """How many positions are committed, by key. From any thread."""
        return {key: kept.ledger.committed for key, kept in self._requests.kept.items()}

    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of a row of each layer; empty before the first Hello. From any thread."""
        return self._row_bytes

    def _answer(self, client: int, header: kv.Header, frame: memoryview, room: int) -> _Answer:
        if header.kind == kv.HELLO:
            return self._hello(client, header, frame)
        if client not in self._sequences:
            return _BAD
        match header.kind:
            case kv.PUT:
                put = parse_put(header, frame, self._row_bytes)
                return _BAD if put is None else self._put(client, put, room)
            case kv.FREE | kv.LOOK | kv.FETCH:
                if kv.RUN_BYTES * header.runs > header.body:
                    return _BAD
                runs = kv.unpack_runs(frame, header)
            case _:
                return _BAD
        if header.kind == kv.FREE:
            return self._free(client, header, runs)
        if len(runs) != 1:
            return _BAD
        if header.kind == kv.LOOK:
            return self._look(client, header, runs[0], room)
        return self._fetch(client, header, runs[0], room)

    def _is_new(self, client: int, header: kv.Header) -> bool:
        """Whether a frame is none that its channel has brought before."""
        if header.sequence <= self._sequences[client]:
            return False
        self._sequences[client] = header.sequence
        return True

    def _hello(self, client: int, header: kv.Header, frame: memoryview) -> _Answer:
        if header.layers == 0 or 4 * header.layers > header.body or client in self._refused:
            return _BAD
        row_bytes = struct.unpack_from(f"<{header.layers}I", frame, kv.HEADER_BYTES)
        if self._row_bytes and row_bytes != self._row_bytes:
            self._sequences.pop(client, None)
            self._refused.add(client)
            return _BAD
        if not self._row_bytes:
            size = page_bytes(row_bytes, self._page_tokens)
            if 0 in row_bytes or size > self._memory:
                return _BAD
            self._row_bytes, self._page_bytes = row_bytes, size
            self._requests = Requests(self._memory // size, self._page_tokens, self._orphan_s)
        self._sequences.setdefault(client, -1)
        self._is_new(client, header)
        return _Answer()

    def _put(self, client: int, put: Put, room: int) -> _Answer:
        if not self._is_new(client, put.header):
            return _Answer()
        self._received += kv.HEADER_BYTES + put.header.body
        dropped: dict[int, None] = {}  # in order, each once
        row = 0
        for run in put.runs:
            if not self._write(client, put, run, row):
                self._dropped_runs += 1
                dropped[run.key] = None
            row += run.length
        keys = list(dropped)[: room // 8]
        return _Answer(b=len(keys), body=struct.pack(f"<{len(keys)}Q", *keys))

    def _write(self, client: int, put: Put, run: kv.Run, row: int) -> bool:
        """Store a run, whose rows start at `row` of the frame; False if any of it was dropped."""
        kept = self._requests.kept.get(run.key)
        if kept is None:
            if run.start > 0:
                return False
            kept = self._requests.create(run.key, len(self._row_bytes), run.attempt, client)
        elif not kept.ledger.write(run.attempt, run.base):
            return False
        kept.owner, kept.orphaned = client, None
        self._requests.trim(kept)
        ledger, first = kept.ledger, put.header.first_layer
        known = [ledger.frontiers[first + i] for i in range(put.header.layers)]
        if put.tokens is not None:
            known.append(len(ledger.tokens))
        if any(run.start <= frontier < run.start + run.length for frontier in known) and (
            not self._requests.reserve(run.key, run.start + run.length)
        ):
            return False
        whole = True
        for index in range(put.header.layers):
            whole &= self._write_layer(kept, put, run, row, index)
        if put.tokens is not None:
            whole &= ledger.commit(run.start, put.tokens[row : row + run.length])
        return whole

    def _write_layer(self, kept: Kept, put: Put, run: kv.Run, row: int, index: int) -> bool:
        """Store the rows of a run in the layer of this index in the frame."""
        layer = put.header.first_layer + index
        size = self._row_bytes[layer]
        wanted = kept.ledger.wanted(layer, run.start, run.length)
        if wanted is None:
            return False
        for position in wanted:
            r = row + position - run.start
            start = put.starts[index] + r * size
            data, checksum = put.body[start : start + size], put.sums[index * put.header.rows + r]
            if checksum == kv.SUM_ABSENT:
                stored = bytes(size)
            else:
                stored = bytes(data)
                if self._check and checksum != row_sum(run.key, layer, position, stored):
                    self._bad_rows += 1
                    return False
            kept.rows[layer].append((checksum, stored))
            kept.ledger.stored(layer, position)
        return True

    def _free(self, client: int, header: kv.Header, runs: list[kv.Run]) -> _Answer:
        if self._is_new(client, header):
            for run in runs:
                kept = self._requests.kept.get(run.key)
                if kept is not None and run.attempt >= kept.ledger.attempt:
                    self._requests.remove(run.key)
        return _Answer()

    def _look(self, client: int, header: kv.Header, run: kv.Run, room: int) -> _Answer:
        if not self._is_new(client, header):
            return _Answer()
        kept = self._requests.kept.get(run.key)
        if kept is None:
            return _Answer(kv.STATUS_UNKNOWN)
        if not kept.ledger.take_over(run.attempt):
            return _Answer(kv.STATUS_STALE)
        kept.owner, kept.orphaned = client, None
        tokens = kept.ledger.tokens[: min(kept.ledger.committed, room // 4)]
        return _Answer(a=len(tokens), body=struct.pack(f"<{len(tokens)}I", *tokens))

    def _fetch(self, client: int, header: kv.Header, run: kv.Run, room: int) -> _Answer:
        count = rows_that_fit(run.length, room, self._row_bytes)
        if count == 0 or not in_range(run):
            return _BAD
        if not self._is_new(client, header):
            return _Answer()
        kept = self._requests.kept.get(run.key)
        if kept is None:
            return _Answer(kv.STATUS_UNKNOWN)
        if run.attempt != kept.ledger.attempt:
            return _Answer(kv.STATUS_STALE)
        if run.start + run.length > kept.ledger.committed:
            return _Answer(kv.STATUS_SHORT)
        records = [
            rows[position] for position in range(run.start, run.start + count) for rows in kept.rows
        ]
        layers = len(self._row_bytes)
        sums = struct.pack(f"<{len(records)}I", *(checksum for checksum, _ in records))
        tables = sums.ljust(kv.fetch_payload(count, layers) - kv.HEADER_BYTES, b"\0")
        return _Answer(a=count, layers=layers, body=tables + b"".join(data for _, data in records))
