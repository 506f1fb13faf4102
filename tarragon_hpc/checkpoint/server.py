"""The loop of a checkpoint store: frames of all AWs in, answers back.

One thread, which waits on one doorbell. What a frame means is the store's business (`PlainStore`,
or its native twin); a client that sends nonsense gets that as an answer, and nobody else notices.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Protocol

from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from tarragon_hpc.transport.base import Doorbell, Listener, ServerChannel

# The longest sleep: how late an orphan is forgotten, and a stop noticed if its ring got lost.
_IDLE_S = 1.0

OURSELVES = 0
"""The client that wrote what was read from a file (`saved.py`). AWs have higher numbers."""

log = logging.getLogger(__name__)


class Store(Protocol):
    """See `PlainStore`."""

    def handle(self, client: int, frame: memoryview, reply: memoryview, now: float) -> int: ...
    def client_lost(self, client: int, now: float) -> None: ...
    def expire(self, now: float) -> None: ...
    def stats(self) -> dict[str, float]: ...


class StoreServer:
    """Serves one store to all AWs that connect.

    `serve` runs in one thread; `stop` and `stats` may be called from any.
    """

    def __init__(self, store: Store, listener: Listener, bell: Doorbell) -> None:
        self._store = store
        self._listener = listener
        self._bell = bell
        self._channels: dict[int, ServerChannel] = {}  # by the number that the store knows
        self._numbers = itertools.count(1)
        self._met = False
        self._complained: set[int] = set()
        self._stop: str | None = None

    def __repr__(self) -> str:
        state = "serving" if self._stop is None else f"stopping ({self._stop})"
        return f"StoreServer({len(self._channels)} AWs, {state})"

    def serve(self) -> str:
        """Serve until `stop`; returns its reason. All channels and the listener are closed then."""
        try:
            while self._stop is None:
                self.step()
        finally:
            self._listener.close()
            for channel in self._channels.values():
                channel.close()
        return self._stop

    def step(self, longest_s: float = _IDLE_S) -> None:
        """One round: a frame of each client that has one, or a sleep if none has."""
        seen = self._bell.value()
        for channel in self._listener.accepted():
            if not self._met:  # AWs have come: they look for what was saved now, or never
                self._met = True
                self._store.client_lost(OURSELVES, time.monotonic())
            self._channels[next(self._numbers)] = channel
            log.info("%s.%d connected", channel.peer, channel.peer_incarnation)
        busy = False
        for client, channel in list(self._channels.items()):
            busy |= self._take(client, channel)
        now = time.monotonic()
        for client in [c for c, channel in self._channels.items() if channel.lost is not None]:
            self._forget(client, now)
        if not busy:
            self._store.expire(now)
            if self._stop is None:
                self._bell.wait(seen, longest_s)

    def stop(self, reason: str) -> None:
        """End `serve` soon; only the first reason counts."""
        self._stop = self._stop or reason
        self._bell.ring()

    def stats(self) -> dict[str, float]:
        """For heartbeats: the store's counters."""
        return self._store.stats()

    def _take(self, client: int, channel: ServerChannel) -> bool:
        """Answer the next frame of a client; False if there is none."""
        request = channel.poll()
        if request is None:
            return False
        reply = channel.reply(request.slot)
        nbytes = self._store.handle(client, request.data, reply, time.monotonic())
        if client not in self._complained and _is_bad(reply[:nbytes]):
            self._complained.add(client)
            log.error(
                "%s.%d sent a frame that makes no sense or another model's; no more is said of it",
                channel.peer,
                channel.peer_incarnation,
            )
        channel.send(request.slot, nbytes)
        return True

    def _forget(self, client: int, now: float) -> None:
        channel = self._channels.pop(client)
        log.warning("%s.%d lost: %s", channel.peer, channel.peer_incarnation, channel.lost)
        self._complained.discard(client)
        self._store.client_lost(client, now)
        channel.close()


def _is_bad(answer: memoryview) -> bool:
    try:
        return kv.unpack_header(answer).status == kv.STATUS_BAD
    except FrameError:  # there was no room for any
        return True
