"""Both ends of a channel whose slots are native (the contract: `base.py`).

Slots, rings and doorbell are the same for every transport. What differs is the *tie* to the peer:
how a filled slot gets there, how one learns that it is gone, how it is asked for a sign of life.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tarragon_hpc import native
from tarragon_hpc.transport.base import Request

if TYPE_CHECKING:
    from tarragon_hpc._native import ClientSlots, Notifier, ServerSlots, Slots
    from tarragon_hpc.transport.base import Geometry
    from tarragon_hpc.transport.bell import ProcessDoorbell


class Tie(Protocol):
    """What binds a channel to its peer."""

    @property
    def answered(self) -> int:
        """How many probes the peer has answered; each answer rings the doorbell too."""

    def probe(self) -> None:
        """See `base.ClientChannel.probe`."""

    def reason(self) -> str:
        """Why the slots were marked lost, if native code did that."""

    def stop(self) -> None:
        """Say farewell and let go of everything; nothing is called back afterwards. Called once,
        from any thread."""


# Rings of requests and replies, number of slots, bytes of each, who is told: of the native slots.
_Slots: TypeAlias = tuple[memoryview, memoryview, int, int, int, "Notifier"]


class SlotChannel:
    """What both ends have in common.

    bell: this process's own
    kind: of the transport
    requests, replies: the rings; an end writes one, the peer's own if both can map it, and reads
        the other, which the peer writes
    notifier: told of every slot that was published in the ring that is written here
    native: the slots, for native code
    """

    kind: str
    native: Slots

    def __init__(
        self,
        kind: str,
        peer: str,
        peer_incarnation: int,
        geometry: Geometry,
        bell: ProcessDoorbell,
        *,
        requests: memoryview,
        replies: memoryview,
        notifier: Notifier,
    ) -> None:
        self.kind = kind
        self.peer = peer
        self.peer_incarnation = peer_incarnation
        self.geometry = geometry
        self._bell = bell
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._tie: Tie | None = None
        g = geometry
        self._requests = _views(requests, g.slots, g.request_bytes)
        self._replies = _views(replies, g.slots, g.reply_bytes)
        self._open(requests, replies, g.slots, g.request_bytes, g.reply_bytes, notifier)

    def _open(self, *slots: *_Slots) -> None:
        """Make the native slots; what is only read here cannot be written."""
        raise NotImplementedError

    def __repr__(self) -> str:
        state = f"lost: {self._lost}" if self._lost else "open"
        who = f"{self.peer}.{self.peer_incarnation}"
        return f"{type(self).__name__}({who} over {self.kind}, {state})"

    @property
    def lost(self) -> str | None:
        if self._lost is None and self.native.lost:
            self.lose("process gone" if self._tie is None else self._tie.reason())
        return self._lost

    @property
    def answered(self) -> int:
        return 0 if self._tie is None else self._tie.answered

    def bind(self, tie: Tie) -> None:
        """Own the tie to the peer from now on. Before anybody else has the channel."""
        self._tie = tie

    def lose(self, reason: str) -> None:
        """The peer is gone, for a reason; only the first one counts. From any thread."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = reason
            self.native.set_lost()
        self._bell.ring()

    def cut(self, reason: str) -> None:
        """Give the peer up; it sees this end close."""
        self.lose(reason)
        with self._lock:
            tie, self._tie = self._tie, None
        if tie is not None:
            tie.stop()

    def close(self) -> None:
        self.cut("closed")


def _views(ring: memoryview, slots: int, nbytes: int) -> list[memoryview]:
    starts = [native.module.slot_offset(s, nbytes) for s in range(slots)]
    return [ring[start : start + nbytes] for start in starts]


class SlotClient(SlotChannel):
    """See `base.ClientChannel`."""

    native: ClientSlots

    def _open(self, *slots: *_Slots) -> None:
        self.native = native.module.ClientSlots(*slots)
        self._replies = [view.toreadonly() for view in self._replies]

    def acquire(self) -> int | None:
        return self.native.acquire()

    def request(self, slot: int) -> memoryview:
        return self._requests[slot]

    def post(self, slot: int, nbytes: int) -> None:
        self.native.post(slot, nbytes)

    def reply(self, slot: int) -> memoryview | None:
        nbytes = self.native.reply(slot)
        if nbytes is None:
            return None
        if nbytes > self.geometry.reply_bytes:
            self.cut(f"wrote a reply of {nbytes} bytes into {self.geometry.reply_bytes}")
            return None
        return self._replies[slot][:nbytes]

    def release(self, slot: int) -> None:
        self.native.release(slot)

    def abandon(self, slot: int) -> None:
        self.native.abandon(slot)

    def owed(self) -> int:
        return self.native.owed()

    def probe(self) -> None:
        if self._tie is not None:
            self._tie.probe()


class SlotServer(SlotChannel):
    """See `base.ServerChannel`."""

    native: ServerSlots

    def _open(self, *slots: *_Slots) -> None:
        self.native = native.module.ServerSlots(*slots)
        self._requests = [view.toreadonly() for view in self._requests]

    def poll(self) -> Request | None:
        found = self.native.poll()
        if found is None:
            return None
        slot, nbytes = found
        if nbytes > self.geometry.request_bytes:
            self.cut(f"posted {nbytes} bytes into a slot of {self.geometry.request_bytes}")
            return None
        return Request(slot, self._requests[slot][:nbytes])

    def reply(self, slot: int) -> memoryview:
        return self._replies[slot]

    def send(self, slot: int, nbytes: int) -> None:
        self.native.send(slot, nbytes)
