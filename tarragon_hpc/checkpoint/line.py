"""The channel to one store, what waits for it and what is on its way over it."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.puts import FreeParcel
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from tarragon_hpc.checkpoint.asks import Ask
    from tarragon_hpc.checkpoint.pieces import Store
    from tarragon_hpc.checkpoint.puts import Parcel
    from tarragon_hpc.checkpoint.traffic import Traffic
    from tarragon_hpc.transport.base import ClientChannel
    from tarragon_hpc.wire.kv import Run

# After such a silence of a store that owes an answer, no rows are kept for it.
_DEAF_S = 0.25

log = logging.getLogger(__name__)


class Line:
    """Belongs to the courier's thread, but for `handed`.

    ready: the store has agreed to serve; urgent: goes first; queue: rows, and requests to forget
    handed, taken: bytes of batches that were committed with something for this store, and of those
    that it does not hold up any more. The engine thread writes `handed`, and nobody else.
    flushed, heeded: how often rows that waited for this store were dropped, and how often the
    engine thread, which writes the latter, has been told so before it planned what comes next
    heard: when the store answered last, or was asked after having answered everything
    """

    def __init__(self, store: Store, channel: ClientChannel, traffic: Traffic, now: float) -> None:
        self.store = store
        self.channel = channel
        self.ready = False
        self.urgent: deque[Ask] = deque()
        self.queue: deque[Parcel] = deque()
        self.handed = 0
        self.taken = 0
        self.flushed = 0
        self.heeded = 0
        self.heard = now
        self._flying: list[tuple[int, int, Ask]] = []  # slot, sequence
        self._sequence = 0
        self._traffic = traffic

    def __repr__(self) -> str:
        return f"Line({self.store}, {len(self._flying)} flying, {len(self.queue)} waiting)"

    @property
    def queued(self) -> int:
        """Bytes of batches that this store holds up. From any thread."""
        return self.handed - self.taken

    def deaf(self, now: float) -> bool:
        """Whether the store has owed an answer for too long. From any thread."""
        return bool(self._flying) and now - self.heard > _DEAF_S

    def eager(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self.urgent) or any(not ask.lazy for _, _, ask in self._flying)

    def busy(self) -> bool:
        """Whether any answer is to come."""
        return bool(self._flying)

    def collect(self, now: float) -> None:
        """Take the answers that are there. A store that breaks the protocol is cut off."""
        left: list[tuple[int, int, Ask]] = []
        flying, self._flying = self._flying, left
        for slot, sequence, ask in flying:
            reply = self.channel.reply(slot) if ask.due() else None
            if reply is None:
                left.append((slot, sequence, ask))
                continue
            self.heard = now
            try:
                header = kv.unpack_header(reply)
                if (header.kind, header.sequence) != (ask.kind, sequence):
                    raise FrameError(f"an answer to {header.kind}/{header.sequence}")
                ask.answered(header, reply)
            except FrameError as error:
                log.warning("%s breaks the protocol: %s", self.store, error)
                ask.lost(str(error))
                self.channel.close()
            else:
                self.channel.release(slot)

    def post_urgent(self, now: float) -> bool:
        """Post what goes first; False if there is no slot for some of it."""
        while self.urgent:
            if self.urgent[0].void():
                self.urgent.popleft()
            elif (slot := self.channel.acquire()) is None:
                return False
            else:
                self._post(slot, self.urgent.popleft(), now)
        return True

    def post_one(self, now: float) -> bool:
        """Post the next frame of the queue, which is not empty; False: there is no slot."""
        slot = self.channel.acquire()
        if slot is None:
            return False
        parcel = self.queue[0]
        self._post(slot, parcel.take(), now)
        if parcel.finished():
            self.queue.popleft()
        return True

    def free(self, key: int, attempt: int) -> None:
        """Tell the store, after what it was to get so far, that it may forget a request."""
        last = self.queue[-1] if self.queue else None
        if not isinstance(last, FreeParcel):
            last = FreeParcel(self.channel.geometry.request_bytes)
            self.queue.append(last)
        last.add(key, attempt)

    def flush(self) -> list[Run]:
        """Drop the rows that wait; returns which they were. Requests to forget stay."""
        self.flushed += 1
        parcels, self.queue = self.queue, deque()
        runs: list[Run] = []
        for parcel in parcels:
            if isinstance(parcel, FreeParcel):
                for run in parcel.runs:
                    self.free(run.key, run.attempt)
            else:
                runs += parcel.runs
                parcel.drop()
        return runs

    def end(self, reason: str) -> None:
        """The store is gone, or not wanted any more: nothing is waited for or posted."""
        self.ready = False
        self.channel.close()
        flying, self._flying = self._flying, []
        for _, _, ask in flying:
            ask.lost(reason)
        while self.urgent:
            self.urgent.popleft().lost(reason)
        while self.queue:
            self.queue.popleft().drop()

    def _post(self, slot: int, ask: Ask, now: float) -> None:
        if not self._flying:
            self.heard = now
        self._sequence += 1
        nbytes = ask.write(self.channel.request(slot), self._sequence)
        self.channel.post(slot, nbytes)
        self._flying.append((slot, self._sequence, ask))
        self._traffic.sent(nbytes, ask.kind)
