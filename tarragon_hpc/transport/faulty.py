"""Any transport, with the faults of a plan: for tests, at the level of the contract.

Faults strike where a message arrives: requests at the server's end, replies at the client's. So
each process that is to be struck has a `Faults`, from which it takes its bell, connector or
listener. All else is the wrapped transport's, except that native code cannot get past the faults:
the channels have no `native` side, so everything goes the long way.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tarragon_hpc.transport.base import Request
from tarragon_hpc.transport.fault_plan import Corrupt, Delay, Drop, Reorder, Sever

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.transport.base import (
        ClientChannel,
        Connector,
        Doorbell,
        Geometry,
        Listener,
        ServerChannel,
    )
    from tarragon_hpc.transport.fault_plan import Action, Direction, FaultPlan

_NEVER = float("inf")
_End = TypeVar("_End", bound="ClientChannel | ServerChannel")


class Faults:
    """The faults of one process.

    bell: to wait on, instead of the one given, which the transport goes on ringing
    clock: monotonic seconds; it must move while that one waits
    """

    def __init__(
        self, plan: FaultPlan, bell: Doorbell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan = plan
        self.clock = clock
        self.bell = FaultyBell(self, bell)
        self.channels: list[_FaultyEnd[Any]] = []
        self._counts: Counter[tuple[str, Direction]] = Counter()

    def __repr__(self) -> str:
        return f"Faults({self.plan})"

    def next(self, peer: str, direction: Direction) -> tuple[int, Action | None]:
        """The number of the next message, and what happens to it."""
        self._counts[peer, direction] += 1
        number = self._counts[peer, direction]
        return number, self.plan.at(peer, direction, number)

    def connector(self, inner: Connector) -> FaultyConnector:
        """A connector with faults in the replies."""
        return FaultyConnector(self, inner)

    def listener(self, inner: Listener) -> FaultyListener:
        """A listener with faults in the requests."""
        return FaultyListener(self, inner)


class FaultyBell:
    """See `base.Doorbell`: also rung when a delayed message is due."""

    def __init__(self, faults: Faults, inner: Doorbell) -> None:
        self._faults = faults
        self._inner = inner

    def value(self) -> int:
        return self._inner.value()

    def ring(self) -> None:
        self._inner.ring()

    def wait(self, seen: int, timeout_s: float) -> int:
        end = self._faults.clock() + timeout_s
        while True:
            due = min([_NEVER, *(channel.look() for channel in (*self._faults.channels,))])
            now = self._faults.clock()
            value = self._inner.value()
            if value != seen or now >= end:
                return value
            self._inner.wait(seen, max(min(due, end) - now, 0.0))


class FaultyConnector:
    """See `base.Connector`."""

    def __init__(self, faults: Faults, inner: Connector) -> None:
        self._faults = faults
        self._inner = inner

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> FaultyClient:
        inner = self._inner.connect(peer, peer_incarnation, address, geometry)
        channel = FaultyClient(self._faults, inner)
        self._faults.channels.append(channel)
        return channel


class FaultyListener:
    """See `base.Listener`."""

    def __init__(self, faults: Faults, inner: Listener) -> None:
        self._faults = faults
        self._inner = inner

    def address(self) -> dict[str, str]:
        return self._inner.address()

    def accepted(self) -> list[ServerChannel]:
        joined = [FaultyServer(self._faults, inner) for inner in self._inner.accepted()]
        self._faults.channels += joined
        return [*joined]

    def close(self) -> None:
        self._inner.close()


class _FaultyEnd(Generic[_End]):
    """What both ends of a channel have in common."""

    def __init__(self, faults: Faults, inner: _End) -> None:
        self._faults = faults
        self._inner = inner
        self._severed: str | None = None
        self.peer = inner.peer
        self.peer_incarnation = inner.peer_incarnation
        self.geometry = inner.geometry

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner})"

    @property
    def lost(self) -> str | None:
        return self._severed or self._inner.lost

    def look(self) -> float:
        """Let happen what is due, and ring for it; returns when there is more to do."""
        raise NotImplementedError

    def close(self) -> None:
        self._inner.close()
        with suppress(ValueError):
            self._faults.channels.remove(self)

    def _sever(self, what: str) -> None:
        if self.lost is None:
            self._severed = f"severed at {what}"
        self._inner.close()
        self._faults.bell.ring()


@dataclass(slots=True)
class _Hidden:
    """A reply that something happens to, until it has happened.

    due: when it is seen, known once it has arrived
    overtaken: how many replies had been seen by then
    """

    number: int
    action: Action
    due: float | None = None
    overtaken: int = 0
    abandoned: bool = False


class FaultyClient(_FaultyEnd["ClientChannel"]):
    """See `base.ClientChannel`."""

    def __init__(self, faults: Faults, inner: ClientChannel) -> None:
        super().__init__(faults, inner)
        self._hidden: dict[int, _Hidden] = {}
        self._altered: dict[int, memoryview] = {}
        self._seen: set[int] = set()
        self._seen_ever = 0

    @property
    def answered(self) -> int:
        return self._inner.answered

    def acquire(self) -> int | None:
        self.look()
        return None if self.lost else self._inner.acquire()

    def request(self, slot: int) -> memoryview:
        return self._inner.request(slot)

    def post(self, slot: int, nbytes: int) -> None:
        lost = self.lost
        self._inner.post(slot, nbytes)
        if lost is None:
            number, action = self._faults.next(self.peer, "reply")
            if action is not None:
                self._hidden[slot] = _Hidden(number, action)

    def reply(self, slot: int) -> memoryview | None:
        self.look()
        if slot in self._hidden:
            self._expect(slot, "reply")
            return None
        reply = self._inner.reply(slot)
        if reply is not None and slot not in self._seen:
            self._seen.add(slot)
            self._seen_ever += 1
        return self._altered.get(slot, reply)

    def release(self, slot: int) -> None:
        if slot in self._hidden:
            self._expect(slot, "release", "posted")
        self._inner.release(slot)
        self._forget(slot)

    def abandon(self, slot: int) -> None:
        if slot in self._hidden:
            self._expect(slot, "abandon")
            self._hidden[slot].abandoned = True  # the slot is owed until its reply is due
        else:
            self._inner.abandon(slot)
            self._forget(slot)

    def owed(self) -> int:
        self.look()
        return self._inner.owed() + sum(h.due is not None for h in self._hidden.values())

    def probe(self) -> None:
        self._inner.probe()

    def look(self) -> float:
        now = self._faults.clock()
        for slot, hidden in [*self._hidden.items()]:
            if hidden.due is None and self._severed is None:
                self._arrive(slot, hidden, now)
            elif isinstance(hidden.action, Reorder) and self._seen_ever > hidden.overtaken:
                hidden.due = now
            if hidden.due is not None and hidden.due <= now and self._may_show(hidden):
                self._show(slot, hidden)
        if self.lost is not None:
            return _NEVER
        return min((h.due for h in self._hidden.values() if h.due is not None), default=_NEVER)

    def _may_show(self, hidden: _Hidden) -> bool:
        """A reply that had arrived before a loss is seen, one that was still under way is not."""
        return self.lost is None or isinstance(hidden.action, Corrupt)

    def _arrive(self, slot: int, hidden: _Hidden, now: float) -> None:
        reply = self._inner.reply(slot)
        if reply is None:
            return
        match hidden.action:
            case Drop():
                hidden.due = _NEVER
            case Delay(seconds) | Reorder(seconds):
                hidden.due, hidden.overtaken = now + seconds, self._seen_ever
            case Corrupt(bit):
                hidden.due = now
                self._altered[slot] = _flipped(reply, bit)
            case Sever():
                self._sever(f"reply {hidden.number}")

    def _show(self, slot: int, hidden: _Hidden) -> None:
        del self._hidden[slot]
        if hidden.abandoned:
            self._inner.abandon(slot)
            self._forget(slot)
        self._faults.bell.ring()

    def _forget(self, slot: int) -> None:
        self._altered.pop(slot, None)
        self._seen.discard(slot)

    def _expect(self, slot: int, what: str, never: str | None = None) -> None:
        state = "abandoned" if self._hidden[slot].abandoned else "posted"
        if state in ("abandoned", never):
            raise RuntimeError(f"{what} of slot {slot}, which is {state}")


class FaultyServer(_FaultyEnd["ServerChannel"]):
    """See `base.ServerChannel`."""

    def __init__(self, faults: Faults, inner: ServerChannel) -> None:
        super().__init__(faults, inner)
        self._came: deque[tuple[float, Request]] = deque()  # since when it can be seen
        self._looked = 0.0
        self._altered: dict[int, memoryview] = {}  # valid until `send`, whoever has the address

    def poll(self) -> Request | None:
        self.look()
        if self.lost is not None or not self._came or self._came[0][0] > self._faults.clock():
            return None
        return self._came.popleft()[1]

    def reply(self, slot: int) -> memoryview:
        return self._inner.reply(slot)

    def send(self, slot: int, nbytes: int) -> None:
        self._inner.send(slot, nbytes)
        self._altered.pop(slot, None)

    def look(self) -> float:
        now = self._faults.clock()
        while self.lost is None and (request := self._inner.poll()) is not None:
            self._arrive(request, now)
        if any(self._looked < due <= now for due, _ in self._came):
            self._faults.bell.ring()
        self._looked = now
        return min((due for due, _ in self._came if due > now), default=_NEVER)

    def _arrive(self, request: Request, now: float) -> None:
        number, action = self._faults.next(self.peer, "request")
        match action:
            case Drop():
                pass
            case Delay(seconds):
                self._came.append((now + seconds, request))
            case Corrupt(bit):
                data = self._altered[request.slot] = _flipped(request.data, bit)
                self._came.append((0.0, Request(request.slot, data)))
            case Sever():
                self._sever(f"request {number}")
            case _:
                self._came.append((0.0, request))


def _flipped(data: memoryview, bit: int) -> memoryview:
    """A copy with one bit flipped."""
    copy = bytearray(data)
    if copy:
        bit %= 8 * len(copy)
        copy[bit // 8] ^= 1 << bit % 8
    return memoryview(copy).toreadonly()
