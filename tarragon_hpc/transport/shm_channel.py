"""Both ends of a shared-memory channel, and the doorbell (the contract: `base.py`).

The rings and the doorbell are native; here is who is at the other end and whether it still is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from tarragon_hpc import native
from tarragon_hpc.transport import memory
from tarragon_hpc.transport.base import Request
from tarragon_hpc.transport.watch import PeerWatch

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tarragon_hpc._native import ClientSlots, LifeWatch, ServerSlots, Slots
    from tarragon_hpc.transport.base import Geometry
    from tarragon_hpc.transport.monitor import Monitor


class ShmDoorbell:
    """The one doorbell of a process; `fd` is what peers get to ring it. See `base.Doorbell`.

    Its memory also holds this process's signs of life, one for each peer to watch.

    native: the same for native code
    spin_us: how long `wait` spins before it sleeps, in microseconds.
    """

    def __init__(self, spin_us: int = 20) -> None:
        memory.require_native()
        self.fd, view = memory.create_memory("tarragon-bell", native.module.BELL_BYTES)
        self.native = native.module.Doorbell(view, spin_us)
        self._sign = native.module.LifeSign(view)
        self._lives = list(range(native.module.LIFE_WORDS))

    def value(self) -> int:
        return self.native.value()

    def ring(self) -> None:
        self.native.ring()

    def wait(self, seen: int, timeout_s: float) -> int:
        return self.native.wait(seen, timeout_s)

    @contextlib.contextmanager
    def life(self) -> Iterator[int]:
        """A sign of life for one peer, who keeps it unless the block raises.

        Should they run out, some peers share one, and all but one of those will learn of this
        process's death by its socket only, which takes longer.
        """
        life = self._lives.pop() if self._lives else 0
        try:
            yield life
        except BaseException:
            self.give_life(life)
            raise

    def give_life(self, life: int) -> None:
        """The peer does not watch it any more."""
        if life not in self._lives:
            self._lives.append(life)

    def close(self) -> None:
        """No peer can join by it any more; the memory lives as long as it is mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _ShmChannel:
    """What both ends have in common.

    bell: this process's own; peer_bell: memory of the peer's; native: the slots, for native code
    """

    native: Slots

    def __init__(
        self,
        peer: str,
        peer_incarnation: int,
        geometry: Geometry,
        bell: ShmDoorbell,
        peer_bell: memoryview,
    ) -> None:
        self.peer = peer
        self.peer_incarnation = peer_incarnation
        self.geometry = geometry
        self._bell = bell
        self._life = 0
        self._peer_bell = peer_bell
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._watches: list[PeerWatch | LifeWatch] = []
        self._watch: PeerWatch | None = None
        self.answered = 0

    def __repr__(self) -> str:
        state = f"lost: {self._lost}" if self._lost else "open"
        return f"{type(self).__name__}({self.peer}.{self.peer_incarnation}, {state})"

    @property
    def lost(self) -> str | None:
        if self._lost is None and self.native.lost:
            self.lose("process gone")  # the sign of life was given up; the socket will follow
        return self._lost

    def start(self, sock: socket.socket, monitor: Monitor, life: int, peer_life: int) -> None:
        """Take over the handshake's socket; watch the peer by it and by its sign of life.

        life: the sign of life that the peer watches.
        """
        self._life = life
        self._watch = PeerWatch(sock, monitor, self.lose, self._alive)
        self._watches = [
            native.module.LifeWatch(self._peer_bell, peer_life, self.native, self._bell.native),
            self._watch,
        ]

    def _alive(self) -> None:
        """In the monitor's thread."""
        self.answered += 1
        self._bell.ring()

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
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.stop()
        if watches:
            self._bell.give_life(self._life)

    def close(self) -> None:
        self.cut("closed")


def _views(ring: memoryview, slots: int, nbytes: int) -> list[memoryview]:
    starts = [native.module.slot_offset(s, nbytes) for s in range(slots)]
    return [ring[start : start + nbytes] for start in starts]


class ShmClientChannel(_ShmChannel):
    """See `base.ClientChannel`. requests: mapping of the peer's ring; replies: of our own."""

    native: ClientSlots

    def __init__(
        self,
        peer: str,
        peer_incarnation: int,
        geometry: Geometry,
        bell: ShmDoorbell,
        *,
        requests: memoryview,
        replies: memoryview,
        peer_bell: memoryview,
    ) -> None:
        super().__init__(peer, peer_incarnation, geometry, bell, peer_bell)
        g = geometry
        self.native = native.module.ClientSlots(
            requests,
            replies,
            g.slots,
            g.request_bytes,
            g.reply_bytes,
            native.module.Doorbell(peer_bell, 0),
        )
        self._requests = _views(requests, g.slots, g.request_bytes)
        self._replies = [v.toreadonly() for v in _views(replies, g.slots, g.reply_bytes)]

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
        if self._watch is not None:
            self._watch.probe()


class ShmServerChannel(_ShmChannel):
    """See `base.ServerChannel`. requests: mapping of our own ring; replies: of the peer's."""

    native: ServerSlots

    def __init__(
        self,
        peer: str,
        peer_incarnation: int,
        geometry: Geometry,
        bell: ShmDoorbell,
        *,
        requests: memoryview,
        replies: memoryview,
        peer_bell: memoryview,
    ) -> None:
        super().__init__(peer, peer_incarnation, geometry, bell, peer_bell)
        g = geometry
        self.native = native.module.ServerSlots(
            requests,
            replies,
            g.slots,
            g.request_bytes,
            g.reply_bytes,
            native.module.Doorbell(peer_bell, 0),
        )
        self._requests = [v.toreadonly() for v in _views(requests, g.slots, g.request_bytes)]
        self._replies = _views(replies, g.slots, g.reply_bytes)

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
