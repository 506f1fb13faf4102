"""The contract every transport keeps (DESIGN §6).

A *channel* joins one client (an AW) to one server (an EW, or a checkpoint store). It has `slots`
pairs of fixed-size buffers: a request buffer in the server's memory and a reply buffer in the
client's, each written one-sided by the other end. Requests are posted in slot order
(0, 1, …, slots-1, 0, …) and seen in that order; the reply to a slot goes to the same slot, in any
order. A slot is in one of these states, seen from the client:

    free ──acquire──▶ filling ──post──▶ posted ──reply arrives──▶ answered ──release──▶ free
                                          └──abandon──▶ abandoned ──late reply──▶ free

Who owns a buffer: the client owns request(slot) between `acquire` and `post`; the server owns it
from `poll` until `send`; the client owns reply(slot) between its arrival and `release`. Nobody
reads or writes a buffer it does not own. A slot whose reply is still owed is never reused, so a
late reply can only land in a slot that expects it or that was abandoned.

Everything that arrives at a process rings that process's one *doorbell*, whatever the transport and
however many channels there are; so does the loss of a peer. A process waits on its doorbell only:

    seen = bell.value()
    … look at the channels …
    bell.wait(seen, timeout_s)        # returns at once if it was rung since `seen` was read

Failure is data: a lost peer sets `channel.lost` to the reason, once and for ever, and rings the
doorbell. No method of a lost channel raises because of the loss: `acquire` and `poll` return None,
`reply` returns None unless the reply had arrived before, `post` and `send` do nothing. A peer that
comes back is a new channel with a new incarnation: a listener refuses incarnations older than the
newest it has seen, and a newer one cuts the older off. Memory shared with a lost peer stays mapped
until `close`.

Threads: a channel and its doorbell's `wait` belong to one thread (the engine thread, the expert
loop). `Doorbell.ring`, `lost` and `Listener`/`Connector` bookkeeping may be touched from others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of a channel: `slots` pairs of a request and a reply buffer, in bytes."""

    slots: int
    request_bytes: int
    reply_bytes: int


class Request(NamedTuple):
    """A posted request at the server; `data` stays valid and unchanged until `send(slot)`."""

    slot: int
    data: memoryview


class Doorbell(Protocol):
    """One counter per receiver, rung by everything that concerns it."""

    def value(self) -> int:
        """The count of rings so far (may wrap)."""

    def ring(self) -> None:
        """Add one and wake the waiter. From any thread; for shm also from other processes."""

    def wait(self, seen: int, timeout_s: float) -> int:
        """Block until the count differs from `seen` or the time is over; return the count.

        Spins for the configured few microseconds, then sleeps. The GIL is released meanwhile.
        """


class ClientChannel(Protocol):
    """The end that asks (AW → EW)."""

    peer: str
    peer_incarnation: int
    geometry: Geometry

    @property
    def lost(self) -> str | None:
        """Why the peer is gone, or None."""

    def acquire(self) -> int | None:
        """The next slot to fill, or None while it is still in use (back-pressure) or lost."""

    def request(self, slot: int) -> memoryview:
        """The request buffer of an acquired slot, writable, `request_bytes` long."""

    def post(self, slot: int, nbytes: int) -> None:
        """Hand the first `nbytes` of the slot to the peer and ring its doorbell."""

    def reply(self, slot: int) -> memoryview | None:
        """The reply to a posted slot once it is there, read-only, as long as the peer made it.

        A reply that arrived before the peer was lost is still returned.
        """

    def release(self, slot: int) -> None:
        """Give an answered slot back; its buffers must not be touched any more."""

    def abandon(self, slot: int) -> None:
        """The reply is not wanted any more; the slot is free again once it has arrived."""

    def owed(self) -> int:
        """How many posted slots have no reply yet, abandoned ones included."""

    def probe(self) -> None:
        """Ask for a sign of life, beside the data and whatever the peer is computing; never waits.

        The answer rings the doorbell and counts in `answered`.
        """

    @property
    def answered(self) -> int:
        """How many probes the peer has answered."""

    def close(self) -> None:
        """Tear this channel down; the peer sees it as lost. Safe to call twice."""


class ServerChannel(Protocol):
    """The end that answers (EW)."""

    peer: str
    peer_incarnation: int
    geometry: Geometry

    @property
    def lost(self) -> str | None:
        """Why the peer is gone, or None."""

    def poll(self) -> Request | None:
        """The next posted request, in posting order, or None."""

    def reply(self, slot: int) -> memoryview:
        """The reply buffer of a polled slot, writable, `reply_bytes` long."""

    def send(self, slot: int, nbytes: int) -> None:
        """Hand the first `nbytes` of the reply to the peer, free the slot, ring its doorbell."""

    def close(self) -> None:
        """Tear this channel down; the peer sees it as lost. Safe to call twice."""


class Listener(Protocol):
    """A server's front door; accepts in the background and authenticates every client."""

    def address(self) -> dict[str, str]:
        """What a `Connector` of the same kind needs to reach this listener (travels as data)."""

    def accepted(self) -> list[ServerChannel]:
        """Channels that joined since the last call (each join rings the server's doorbell)."""

    def close(self) -> None:
        """Stop accepting; channels live on."""


class Connector(Protocol):
    """A client's way out."""

    def connect(
        self, peer: str, peer_incarnation: int, address: dict[str, str], geometry: Geometry
    ) -> ClientChannel:
        """Open a channel; raises ConnectFailed if the peer refuses, is gone or is another one."""
