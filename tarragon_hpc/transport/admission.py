"""Who may join a listener: the right door, and never an older incarnation than one seen before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from tarragon_hpc.transport.base import Geometry

MAX_SLOTS = 256


class Joined(Protocol):
    """A server's end of a channel."""

    peer: str
    peer_incarnation: int

    @property
    def lost(self) -> str | None: ...


C = TypeVar("C", bound=Joined)


class Admission(Generic[C]):
    """The newest channel of every client of one server. Pure bookkeeping, no I/O."""

    def __init__(self, worker: str, incarnation: int) -> None:
        self._worker = worker
        self._incarnation = incarnation
        self._newest: dict[str, int] = {}
        self._channels: dict[str, list[C]] = {}

    def refusal(self, client: str, incarnation: int, server: str, number: int) -> str | None:
        """Why the client may not join a server it takes for `server`.`number`; None: it may."""
        if (server, number) != (self._worker, self._incarnation):
            return f"this is {self._worker}.{self._incarnation}, not {server}.{number}"
        newest = self._newest.get(client, 0)
        if incarnation < newest:
            return f"{client}.{incarnation} was replaced by {client}.{newest}"
        return None

    def admit(self, channel: C) -> list[C]:
        """The channel has joined; returns those of older incarnations, which must be cut off."""
        client, newest = channel.peer, channel.peer_incarnation
        live = [c for c in self._channels.get(client, []) if c.lost is None]
        older = [c for c in live if c.peer_incarnation < newest]
        self._newest[client] = newest
        self._channels[client] = [*(c for c in live if c not in older), channel]
        return older


def geometry_refusal(g: Geometry, max_bytes: int) -> str | None:
    """Why a channel of this geometry is not allowed, or None."""
    if not 1 <= g.slots <= MAX_SLOTS:
        return f"{g.slots} slots; allowed are 1 to {MAX_SLOTS}"
    if g.request_bytes < 1 or g.reply_bytes < 1:
        return f"slots of {g.request_bytes} and {g.reply_bytes} bytes; both must be positive"
    if g.slots * (g.request_bytes + g.reply_bytes) > max_bytes:
        return f"{g.slots} x ({g.request_bytes} + {g.reply_bytes}) bytes; allowed are {max_bytes}"
    return None
