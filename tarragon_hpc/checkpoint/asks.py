"""What a courier asks a store: something to write into a slot, and what to do with the answer."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.checkpoint.row_layout import RowLayout


class Ask(Protocol):
    """One frame. At least one of `answered` and `lost` is called for each that is not void.

    kind: as in `wire.kv`; lazy: nobody waits for the answer, it is read when it suits
    """

    kind: int
    lazy: bool

    def void(self) -> bool:
        """Nobody wants it any more: it need not be posted."""

    def write(self, slot: memoryview, sequence: int) -> int:
        """Write the frame; returns its bytes."""

    def due(self) -> bool:
        """Whether its answer may be taken now, if it is there."""

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        """The answer, whose memory is valid until this returns. Raises FrameError if it cannot be
        one."""

    def lost(self, reason: str) -> None:
        """The store is gone."""


def write_frame(
    slot: memoryview, kind: int, sequence: int, *, runs: list[kv.Run], layers: int = 0
) -> int:
    """Write a frame of nothing but runs; returns its bytes."""
    body = b"".join(map(kv.pack_run, runs))
    header = kv.Header(kind, 0, 0, sequence, len(runs), 0, 0, layers, len(body))
    slot[: kv.HEADER_BYTES + len(body)] = kv.pack_header(header) + body
    return kv.HEADER_BYTES + len(body)


class Hello:
    """The first frame of a channel: says how long rows are. `done(why not, or None)`."""

    kind = kv.HELLO
    lazy = False

    def __init__(self, layout: RowLayout, done: Callable[[str | None], None]) -> None:
        self._layout = layout
        self._done = done

    def void(self) -> bool:
        return False

    def write(self, slot: memoryview, sequence: int) -> int:
        body = struct.pack(f"<{self._layout.layers}I", *self._layout.row_bytes)
        header = kv.Header(kv.HELLO, 0, 0, sequence, 0, 0, 0, self._layout.layers, len(body))
        slot[: kv.HEADER_BYTES + len(body)] = kv.pack_header(header) + body
        return kv.HEADER_BYTES + len(body)

    def due(self) -> bool:
        return True

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        good = header.status == kv.STATUS_OK
        self._done(None if good else "it keeps rows of another model")

    def lost(self, reason: str) -> None:
        """Whoever looks after the channel sees it too."""
