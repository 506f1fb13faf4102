"""Rows and farewells for one store, frame by frame, in the order in which they were handed over."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tarragon_hpc.checkpoint.asks import write_frame
from tarragon_hpc.checkpoint.cutting import clip_runs, clip_segments, cut, frame_bytes
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.checkpoint.asks import Ask
    from tarragon_hpc.checkpoint.batch import Batch, Share
    from tarragon_hpc.checkpoint.cutting import Frame

    # (runs, keys of those that were dropped, whether the others are committed)
    Answered = Callable[[list[kv.Run], frozenset[int], bool], None]

# Requests that a store is told to forget, at most, while it does not listen; it evicts the others.
_MAX_FREES = 4096


class Parcel(Protocol):
    """A number of frames."""

    def take(self) -> Ask:
        """The next frame; there is one."""

    def finished(self) -> bool:
        """Whether all frames have been taken; asked once after each.

        What they held is let go then.
        """

    def drop(self) -> None:
        """The rest will not be posted."""


class RowParcel:
    """A store's share of a batch. `on_posted` is called once nothing of it is needed any more."""

    def __init__(
        self,
        batch: Batch,
        share: Share,
        capacity: int,
        answered: Answered,
        on_posted: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._share = share
        self._frames = cut(share.rows, len(share.runs), batch.layout, capacity)
        self._next = 0
        self._answered = answered
        self._on_posted = on_posted

    def take(self) -> Ask:
        frame = self._frames[self._next]
        self._next += 1
        return _Put(self._batch, self._share, frame, self._answered)

    def finished(self) -> bool:
        if self._next < len(self._frames):
            return False
        self.drop()
        return True

    def drop(self) -> None:
        """The rest will not be posted."""
        self._on_posted()


class _Put:
    """A frame of rows; see `Ask`."""

    kind = kv.PUT
    lazy = True

    def __init__(self, batch: Batch, share: Share, frame: Frame, answered: Answered) -> None:
        self._batch = batch
        self._segments = share.segments
        self._runs = share.runs
        if frame.start > 0 or frame.stop < share.rows:
            self._segments = clip_segments(share.segments, frame.start, frame.stop)
            self._runs = clip_runs(share.runs, frame.start, frame.stop)
        self._frame = frame
        self._answered = answered

    def void(self) -> bool:
        return False

    def write(self, slot: memoryview, sequence: int) -> int:
        batch, frame, runs, segments = self._batch, self._frame, self._runs, self._segments
        first, layers, commit = frame.first_layer, frame.layers, frame.commit
        rows = frame.stop - frame.start
        nbytes = frame_bytes(len(runs), frame, batch.layout)
        flags = kv.FLAG_COMMIT if commit else 0
        body = nbytes - kv.HEADER_BYTES
        header = kv.Header(kv.PUT, flags, 0, sequence, len(runs), rows, first, layers, body)
        at = kv.HEADER_BYTES + kv.RUN_BYTES * len(runs)
        slot[:at] = kv.pack_header(header) + b"".join(map(kv.pack_run, runs))
        to = np.frombuffer(slot, np.uint8)
        if commit:
            tokens = to[at : at + 4 * rows].view(np.uint32)
            at += 4 * rows
            _copy(batch.tokens[None, :, None], tokens[None, :, None], segments)
        sums = to[at : at + 4 * rows * layers].view(np.uint32).reshape(layers, rows, 1)
        every = batch.sums.reshape(batch.layout.layers, batch.count, 1)
        _copy(every[first : first + layers], sums, segments)
        at = kv.put_payload(len(runs), rows, layers, commit=commit)
        for low, high, size in batch.layout.spans(first, layers):
            before = batch.layout.before
            source = batch.payload[batch.count * before[low] : batch.count * before[high]]
            stop = at + (high - low) * rows * size
            _copy(
                source.reshape(high - low, batch.count, size),
                to[at:stop].reshape(high - low, rows, size),
                segments,
            )
            at = stop
        return nbytes

    def due(self) -> bool:
        return True

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        if header.status == kv.STATUS_OK and not header.runs:
            dropped: frozenset[int] = frozenset()
        elif header.status == kv.STATUS_OK:
            if 8 * header.runs > header.body:
                raise FrameError(f"{header.runs} keys in {header.body} bytes")
            dropped = frozenset(struct.unpack_from(f"<{header.runs}Q", reply, kv.HEADER_BYTES))
        else:
            dropped = frozenset(run.key for run in self._runs)
        self._answered(self._runs, dropped, self._frame.commit)

    def lost(self, reason: str) -> None:
        """Nothing is known of these rows; a store that is connected to anew gets all of them."""


def _copy(
    source: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    target: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    segments: list[tuple[int, int]],
) -> None:
    """Put the named ranges of rows of `source` one after another; both [layers, rows, …]."""
    at = 0
    for low, high in segments:
        stop = at + high - low
        target[:, at:stop] = source[:, low:high]
        at = stop


class FreeParcel:
    """Requests that a store may forget."""

    def __init__(self, capacity: int) -> None:
        self._per_frame = (capacity - kv.HEADER_BYTES) // kv.RUN_BYTES
        self._runs: list[kv.Run] = []

    def add(self, key: int, attempt: int) -> None:
        """One more."""
        if len(self._runs) == _MAX_FREES:
            del self._runs[0]
        self._runs.append(kv.Run(key, attempt, 0, 0, 0))

    def take(self) -> Ask:
        some, self._runs = self._runs[: self._per_frame], self._runs[self._per_frame :]
        return _Free(some)

    def finished(self) -> bool:
        return not self._runs

    def drop(self) -> None:
        """The rest will not be posted."""


class _Free:
    """See `Ask`."""

    kind = kv.FREE
    lazy = True

    def __init__(self, runs: list[kv.Run]) -> None:
        self._runs = runs

    def void(self) -> bool:
        return False

    def write(self, slot: memoryview, sequence: int) -> int:
        return write_frame(slot, kv.FREE, sequence, runs=self._runs)

    def due(self) -> bool:
        return True

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        """Whatever it says, nothing depends on it."""

    def lost(self, reason: str) -> None:
        """It has forgotten everything anyway."""
