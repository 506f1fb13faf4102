"""What a worker must remember of its head to serve on without it. Pure.

A memory hears both directions of the control connection, in order. Should the connection end it
can tell the next head what this worker has become (`standing`), and the worker which sequences it
has to forget (`drop_sequences`). What it keeps is bounded by what the worker runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.wire.common import Standing, Unanswered
from tarragon_hpc.wire.to_head import (
    Cleared,
    Failed,
    Holding,
    Linked,
    Ready,
    Refused,
    Suspect,
    TableApplied,
    Tokens,
)
from tarragon_hpc.wire.to_worker import (
    Abort,
    Drain,
    Load,
    Shutdown,
    Stores,
    Submit,
    Table,
    ToWorker,
    Unload,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.wire.common import Message

Detail = dict[str, str | int | float | list[int]]


class Memory:
    """Of one worker, over all its heads."""

    def __init__(self) -> None:
        self._experts: list[int] | None = None
        self._detail: Detail | None = None
        self._holds: list[int] = []
        self._orders: list[Unanswered] = []
        self._sent = self._applied = 0
        self._stores: dict[str, int] = {}
        self._leaving = False
        self._links: dict[str, Linked] = {}
        self._suspects: dict[str, Suspect] = {}
        self._running: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"Memory({len(self._running)} sequences, {self.standing()})"

    def told(self, message: ToWorker) -> None:
        """The head has sent this."""
        match message:
            case Welcome():
                self._experts = sorted({*(message.experts or ()), *(message.shadows or ())})
            case Load() | Unload():
                order = Unanswered(isinstance(message, Load), message.experts)
                self._orders.append(order)
            case Table():
                self._sent = max(self._sent, message.epoch)
            case Stores():
                self._stores = {peer.worker: peer.incarnation for peer in message.peers}
            case Submit():
                self._running[message.request] = None
            case Abort():
                self._forget(message.requests)
            case Drain() | Shutdown():
                self._leaving = True
            case _:
                pass

    def said(self, message: Message) -> None:
        """The worker says this to its head, whether or not there is one."""
        match message:
            case Ready():
                self._detail = message.detail
                self._holds = _held(message.detail, self._experts or [])
            case Holding():
                self._holds = message.experts
                del self._orders[:1]
            case TableApplied():
                self._applied = max(self._applied, message.epoch)
            case Linked():
                self._links[message.peer] = message
            case Suspect():
                self._suspects[message.peer] = message
            case Cleared():
                self._suspects.pop(message.peer, None)
            case Tokens():
                self._forget([item.request for item in message.items if item.finish is not None])
            case Failed():
                self._forget(message.requests)
            case Refused():
                self._forget([message.request])
            case _:
                pass

    def standing(self) -> Standing:
        """What the worker is now."""
        return Standing(
            welcomed=self._experts is not None,
            experts=self._experts or [],
            detail=self._detail,
            holds=self._holds,
            orders=list(self._orders),
            table_sent=self._sent,
            table_applied=self._applied,
            stores=self._stores,
            leaving=self._leaving,
        )

    def reports(self) -> list[Message]:
        """What it has said of its peers, and still holds: how it is connected to each, and who
        looks dead.
        """
        return [*self._links.values(), *self._suspects.values()]

    def drop_sequences(self) -> list[str]:
        """The sequences that the worker runs for a head that is gone; they are forgotten here."""
        running = list(self._running)
        self._running.clear()
        return running

    def _forget(self, requests: list[str]) -> None:
        for request in requests:
            self._running.pop(request, None)


def _held(detail: Mapping[str, Any], told: list[int]) -> list[int]:
    """What a Ready says that an EW can serve; if it does not say, what it was told to load."""
    lists = [part for key in ("experts", "shadows") if isinstance(part := detail.get(key), list)]
    return sorted({e for part in lists for e in part}) if lists else told
