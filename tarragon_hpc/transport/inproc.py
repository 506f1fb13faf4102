"""The contract inside one process: the reference implementation, for tests and simulation.

Deterministic: what is posted is visible at once, in order, and nothing happens by itself. Workers
meet in an `InprocNetwork`, which can also kill one of them, and cut or silence its links. With
`on_wait` a doorbell runs the rest of a single-threaded simulation instead of sleeping.
"""

from __future__ import annotations

import hmac
import threading
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConnectFailed
from tarragon_hpc.transport.admission import Admission
from tarragon_hpc.transport.base import Request
from tarragon_hpc.transport.slots import ClientLedger, ServerLedger

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.transport.base import Geometry, ServerChannel


class InprocDoorbell:
    """A counter with a condition variable.

    `on_wait` makes `wait` call it until the bell was rung or it returns False (nothing left to do:
    the wait times out); no thread sleeps then.
    """

    def __init__(self, on_wait: Callable[[], bool] | None = None) -> None:
        self._count = 0
        self._changed = threading.Condition()
        self._on_wait = on_wait

    def value(self) -> int:
        return self._count

    def ring(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        if self._on_wait is not None:
            while self._count == seen and self._on_wait():
                pass
            return self._count
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, max(timeout_s, 0))
            return self._count


class _Buffers:
    """One direction of a channel: buffers, lengths and sequence numbers."""

    def __init__(self, slots: int, nbytes: int) -> None:
        self.data = [memoryview(bytearray(nbytes)) for _ in range(slots)]
        self.nbytes = [0] * slots
        self.sequence = [0] * slots

    def publish(self, slot: int, sequence: int, nbytes: int) -> None:
        self.nbytes[slot] = nbytes
        self.sequence[slot] = sequence

    def holds(self, slot: int, sequence: int) -> bool:
        return self.sequence[slot] == sequence

    def read(self, slot: int) -> memoryview:
        return self.data[slot][: self.nbytes[slot]].toreadonly()


class _Link:
    """What the two ends of a channel share."""

    def __init__(self, geometry: Geometry, network: InprocNetwork) -> None:
        self.geometry = geometry
        self.network = network
        self.requests = _Buffers(geometry.slots, geometry.request_bytes)
        self.replies = _Buffers(geometry.slots, geometry.reply_bytes)
        self.ends: list[_End] = []
        self._lock = threading.Lock()
        self._held: list[Callable[[], None]] | None = None

    def carry(self, message: Callable[[], None]) -> None:
        """Let a message take effect at the other end, now or once the link is not silent."""
        with self._lock:
            if self._held is None:
                message()
            else:
                self._held.append(message)

    def silence(self) -> None:
        """Hold everything from now on."""
        with self._lock:
            self._held = self._held or []

    def heal(self) -> None:
        """Let go of what was held."""
        with self._lock:
            held, self._held = self._held or (), None
            for message in held:
                message()

    def cut(self, reason: str) -> None:
        for end in self.ends:
            end.lose(reason)


class _End:
    """One end of a link; `bell` is this end's own, rung by the other."""

    def __init__(self, link: _Link, peer: str, peer_incarnation: int, bell: InprocDoorbell) -> None:
        self.peer = peer
        self.peer_incarnation = peer_incarnation
        self.geometry = link.geometry
        self.bell = bell
        self._link = link
        self._lost: str | None = None
        link.ends.append(self)

    def __repr__(self) -> str:
        state = f"lost: {self._lost}" if self._lost else "open"
        return f"{type(self).__name__}({self.peer}.{self.peer_incarnation}, {state})"

    @property
    def lost(self) -> str | None:
        return self._lost

    def lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            self.bell.ring()

    def cut(self, reason: str) -> None:
        """Give this end up; the other sees it closed."""
        self.lose(reason)
        self._link.carry(lambda: self._link.cut("closed by peer"))

    def close(self) -> None:
        self.cut("closed")

    def _hand_over(self, buffers: _Buffers, slot: int, sequence: int, nbytes: int) -> None:
        if self._lost:
            return
        if nbytes > len(buffers.data[slot]):
            raise ValueError(f"{nbytes} bytes are longer than the slot")

        def arrive() -> None:
            buffers.publish(slot, sequence, nbytes)
            for end in self._link.ends:
                if end is not self:
                    end.bell.ring()

        self._link.carry(arrive)


class InprocClientChannel(_End):
    """See `base.ClientChannel`."""

    def __init__(self, link: _Link, peer: str, peer_incarnation: int, bell: InprocDoorbell) -> None:
        super().__init__(link, peer, peer_incarnation, bell)
        self.answered = 0
        self._ledger = ClientLedger(link.geometry.slots, link.replies.holds)

    def acquire(self) -> int | None:
        return None if self._lost else self._ledger.acquire()

    def request(self, slot: int) -> memoryview:
        return self._link.requests.data[slot]

    def post(self, slot: int, nbytes: int) -> None:
        sequence = self._ledger.post(slot)
        self._hand_over(self._link.requests, slot, sequence, nbytes)

    def reply(self, slot: int) -> memoryview | None:
        return self._link.replies.read(slot) if self._ledger.reply(slot) else None

    def release(self, slot: int) -> None:
        self._ledger.release(slot)

    def abandon(self, slot: int) -> None:
        self._ledger.abandon(slot)

    def owed(self) -> int:
        return self._ledger.owed()

    def probe(self) -> None:
        if self._lost is None and self.peer not in self._link.network.stopped:
            self._link.carry(self._hear)

    def _hear(self) -> None:
        self.answered += 1
        self.bell.ring()


class InprocServerChannel(_End):
    """See `base.ServerChannel`."""

    def __init__(self, link: _Link, peer: str, peer_incarnation: int, bell: InprocDoorbell) -> None:
        super().__init__(link, peer, peer_incarnation, bell)
        self._ledger = ServerLedger(link.geometry.slots)

    def poll(self) -> Request | None:
        slot, sequence = self._ledger.next()
        if self._lost or not self._link.requests.holds(slot, sequence):
            return None
        self._ledger.take()
        return Request(slot, self._link.requests.read(slot))

    def reply(self, slot: int) -> memoryview:
        return self._link.replies.data[slot]

    def send(self, slot: int, nbytes: int) -> None:
        sequence = self._ledger.send(slot)
        self._hand_over(self._link.replies, slot, sequence, nbytes)


class InprocNetwork:
    """Where listeners and connectors of one process meet.

    stopped: workers that answer no probes
    cut_off: workers that nobody can reach
    """

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self.cut_off: set[str] = set()
        self.listeners: dict[str, InprocListener] = {}
        self._links: list[tuple[str, str, _Link]] = []

    def join(self, client: str, server: str, link: _Link) -> None:
        """A link between two workers has come into being."""
        self._links.append((client, server, link))

    def kill(self, worker: str) -> None:
        """The worker dies: it takes part in nothing any more, and its peers see it."""
        self.listeners = {n: ln for n, ln in self.listeners.items() if ln.worker != worker}
        for link in self._links_of(worker):
            link.cut("killed")

    def cut(self, worker: str, reason: str = "link cut") -> None:
        """The worker's links break, and both ends of each see it."""
        self.cut_off.add(worker)
        for link in self._links_of(worker):
            link.cut(reason)

    def silence(self, worker: str) -> None:
        """The worker's links hold what they are given, and nobody can tell."""
        self.cut_off.add(worker)
        for link in self._links_of(worker):
            link.silence()

    def heal(self, worker: str) -> None:
        """The worker can be reached again; what its links have held arrives."""
        self.cut_off.discard(worker)
        for link in self._links_of(worker):
            link.heal()

    def _links_of(self, worker: str) -> list[_Link]:
        return [link for client, server, link in self._links if worker in (client, server)]


class InprocListener:
    """See `base.Listener`."""

    def __init__(
        self,
        network: InprocNetwork,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: InprocDoorbell,
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.secret = secret
        self.bell = bell
        self._network = network
        self._name = f"{worker}.{incarnation}"
        self._accepted: list[ServerChannel] = []
        self._admission: Admission[InprocServerChannel] = Admission(worker, incarnation)
        network.listeners[self._name] = self

    def address(self) -> dict[str, str]:
        return {"kind": "inproc", "name": self._name}

    def refusal(self, client: str, incarnation: int, server: str, number: int) -> str | None:
        """Why this client may not join, or None."""
        return self._admission.refusal(client, incarnation, server, number)

    def admit(self, channel: InprocServerChannel) -> None:
        """A client has joined."""
        for older in self._admission.admit(channel):
            older.cut(f"replaced by {channel.peer}.{channel.peer_incarnation}")
        self._accepted.append(channel)
        self.bell.ring()

    def accepted(self) -> list[ServerChannel]:
        joined, self._accepted = self._accepted, []
        return joined

    def close(self) -> None:
        self._network.listeners.pop(self._name, None)


class InprocConnector:
    """See `base.Connector`."""

    def __init__(
        self,
        network: InprocNetwork,
        worker: str,
        incarnation: int,
        secret: bytes,
        bell: InprocDoorbell,
    ) -> None:
        self._network = network
        self._worker = worker
        self._incarnation = incarnation
        self._secret = secret
        self._bell = bell

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> InprocClientChannel:
        listener = self._network.listeners.get(address.get("name", ""))
        if listener is None:
            raise ConnectFailed(f"{peer}: nobody listens at {address}")
        if self._network.cut_off & {self._worker, peer}:
            raise ConnectFailed(f"{peer}: cannot be reached")
        if not hmac.compare_digest(listener.secret, self._secret):
            raise ConnectFailed(f"{peer}: the peers do not share the run's secret")
        refusal = listener.refusal(self._worker, self._incarnation, peer, peer_incarnation)
        if refusal:
            raise ConnectFailed(f"{peer}: {refusal}")
        link = _Link(geometry, self._network)
        channel = InprocClientChannel(link, peer, peer_incarnation, self._bell)
        listener.admit(InprocServerChannel(link, self._worker, self._incarnation, listener.bell))
        self._network.join(self._worker, peer, link)
        return channel
