"""Who may join a listener: the right door, and never an older incarnation than one seen before."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


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
