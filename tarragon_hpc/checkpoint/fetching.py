"""Rows of a range of positions back from a store, in pieces, as many at once as there are slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.checkpoint.asks import write_frame
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.checkpoint.line import Line
    from tarragon_hpc.checkpoint.row_layout import RowLayout
    from tarragon_hpc.checkpoint.traffic import Traffic

    # (position, rows, their bytes token by token, their sums u32 [rows][layers]) -> all is well
    Sink = Callable[[int, int, memoryview, memoryview], bool]


class FetchResult(NamedTuple):
    """How a fetch ended; nbytes: of rows that the sink took; seconds: since it was asked for."""

    ok: bool
    reason: str
    nbytes: int
    seconds: float


def rows_per_reply(layout: RowLayout, reply_bytes: int) -> int:
    """How many rows of all layers a reply has room for."""
    room = reply_bytes - kv.HEADER_BYTES
    rows = room // (layout.token_bytes + 4 * layout.layers)
    while rows and fetched_bytes(layout, rows) > reply_bytes:
        rows -= 1
    return rows


def fetched_bytes(layout: RowLayout, rows: int) -> int:
    """Bytes of an answer with so many rows."""
    return kv.fetch_payload(rows, layout.layers) + rows * layout.token_bytes


class Fetching:
    """One fetch, over one line. `done` is called exactly once.

    The sink is called in the order of positions; what it is given is valid until it returns. If it
    finds something wrong, or does not want any more, the fetch ends.
    """

    def __init__(
        self,
        line: Line,
        layout: RowLayout,
        run: kv.Run,
        sink: Sink,
        done: Callable[[FetchResult], None],
        traffic: Traffic,
        now: float,
    ) -> None:
        self.over = False
        self.layout = layout
        self.run = run
        self.next = run.start
        self._line = line
        self._sink = sink
        self._done = done
        self._traffic = traffic
        self._begun = self._now = now
        self._nbytes = 0
        step = rows_per_reply(layout, line.channel.geometry.reply_bytes)
        stop = run.start + run.length
        for start in range(run.start, stop, step):
            line.urgent.append(_Fetch(self, start, min(step, stop - start)))
        if not run.length:
            self.end("", now)

    def look(self, now: float, timeout_s: float) -> None:
        """End it if the store has said nothing for too long."""
        self._now = now
        if now >= self.deadline(timeout_s):
            self.end(f"no answer for {timeout_s:g} s", now)

    def deadline(self, timeout_s: float) -> float:
        """Until when the store must have said something."""
        return max(self._begun, self._line.heard) + timeout_s

    def end(self, reason: str, now: float) -> None:
        """Tell the result; no reason: it is complete."""
        if not self.over:
            self.over = True
            self._done(FetchResult(not reason, reason, self._nbytes, now - self._begun))

    def take(self, start: int, rows: int, payload: memoryview, sums: memoryview) -> None:
        """The next rows are there."""
        if not self._sink(start, rows, payload, sums):
            self._traffic.bad_fetches += 1
            self.fail("rows refused")
            return
        self._nbytes += len(payload)
        self._traffic.restored_tokens += rows
        self.next = start + rows
        if self.next == self.run.start + self.run.length:
            self.fail("")

    def fail(self, reason: str) -> None:
        """End it at the moment when answers were taken last."""
        self.end(reason, max(self._now, self._line.heard))


_WHY = {
    kv.STATUS_UNKNOWN: "the store has lost the request",
    kv.STATUS_STALE: "a newer attempt owns it",
    kv.STATUS_SHORT: "the store has less than that",
    kv.STATUS_BAD: "refused",
}


class _Fetch:
    """The question for some rows; see `Ask`."""

    kind = kv.FETCH
    lazy = False

    def __init__(self, job: Fetching, start: int, rows: int) -> None:
        self._job = job
        self._start = start
        self._rows = rows

    def void(self) -> bool:
        return self._job.over

    def write(self, slot: memoryview, sequence: int) -> int:
        run = self._job.run._replace(start=self._start, length=self._rows)
        return write_frame(slot, kv.FETCH, sequence, runs=[run])

    def due(self) -> bool:
        return self._job.over or self._job.next == self._start

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        job = self._job
        if job.over:
            return
        if header.status != kv.STATUS_OK:
            job.fail(_WHY.get(header.status, f"status {header.status}"))
            return
        if header.rows != self._rows:
            raise FrameError(f"{header.rows} rows instead of {self._rows}")
        begin = kv.fetch_payload(self._rows, job.layout.layers)
        end = fetched_bytes(job.layout, self._rows)
        if kv.HEADER_BYTES + header.body < end:
            raise FrameError(f"{self._rows} rows in {header.body} bytes")
        sums = kv.HEADER_BYTES + 4 * self._rows * job.layout.layers
        job.take(self._start, self._rows, reply[begin:end], reply[kv.HEADER_BYTES : sums])

    def lost(self, reason: str) -> None:
        self._job.fail(reason)
