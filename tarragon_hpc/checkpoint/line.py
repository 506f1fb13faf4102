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

log = logging.getLogger(__name__)


class Line:
    """Belongs to the courier's thread, but for `handed`.

    ready: the store has agreed to serve; urgent: goes first; queue: rows, and requests to forget
    handed, taken: staging bytes for this store that batches were committed with, and of those what
    was posted or dropped. The engine thread writes `handed`, and nobody else; the difference is
    what the store is behind with.
    heard: when the store answered anything last
    """

    def __init__(self, store: Store, channel: ClientChannel, traffic: Traffic, now: float) -> None:
        self.store = store
        self.channel = channel
        self.ready = False
        self.urgent: deque[Ask] = deque()
        self.queue: deque[Parcel] = deque()
        self.handed = 0
        self.taken = 0
        self.heard = now
        self._flying: list[tuple[int, int, Ask]] = []  # slot, sequence
        self._sequence = 0
        self._traffic = traffic

    def __repr__(self) -> str:
        return f"Line({self.store}, {len(self._flying)} flying, {len(self.queue)} waiting)"

    @property
    def queued(self) -> int:
        """Staging bytes that wait for this store. From any thread."""
        return self.handed - self.taken

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

    def post_urgent(self) -> bool:
        """Post what goes first; False if there is no slot for some of it."""
        while self.urgent:
            if self.urgent[0].void():
                self.urgent.popleft()
            elif (slot := self.channel.acquire()) is None:
                return False
            else:
                self._post(slot, self.urgent.popleft())
        return True

    def post_one(self) -> bool:
        """Post the next frame of the queue, which is not empty; False: there is no slot."""
        slot = self.channel.acquire()
        if slot is None:
            return False
        parcel = self.queue[0]
        self._post(slot, parcel.take())
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

    def _post(self, slot: int, ask: Ask) -> None:
        self._sequence += 1
        nbytes = ask.write(self.channel.request(slot), self._sequence)
        self.channel.post(slot, nbytes)
        self._flying.append((slot, self._sequence, ask))
        self._traffic.sent(nbytes, ask.kind)
