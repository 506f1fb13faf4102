"""Streams that a client can come back to: their events are kept, and they go on without it.

The server-sent events of such a stream are numbered from 1. Memory is bounded: at most `limit`
streams are kept, each as long as its generation may get (`max_tokens` of its sequences). Where one
more is opened, the oldest of those that have ended is forgotten before its time. Those that run
are never more than the sequences that may be open.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from tarragon_hpc.errors import HandingOver, RequestError
from tarragon_hpc.gateway.fields import shown
from tarragon_hpc.gateway.stream import EventStream, last_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from contextlib import AbstractContextManager


def read_position(query: Mapping[str, str], last_event_id: str | None) -> int:
    """The number of the last event that a client has: `after` in the query, or Last-Event-ID.

    The header counts if there is one: a browser that reconnects sends it with the address that it
    began with. Raises RequestError.
    """
    for name in query:
        if name != "after":
            raise RequestError(f"{shown(name)}: unknown parameter; only after is", param=name[:80])
    name, text = "after", query.get("after", "0")
    if last_event_id:
        name, text = "after (Last-Event-ID)", last_event_id
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(
            f"{name}: must be the number of an event, 0 or more (got {shown(text)})", param="after"
        )
    return int(text)


class Replay:
    """The events of one stream so far, and the task that makes them.

    name: for the log. generation: entered while events are made; leaving it ends what still runs.
    source: the events, without numbers. gone: called when it is to be found no more: `keep_s`
    after its end, or when nobody has read for so long while it runs, and it is given up.
    """

    def __init__(
        self,
        name: str,
        generation: AbstractContextManager[object],
        source: AsyncGenerator[bytes],
        keep_s: float,
        gone: Callable[[Replay], None],
    ) -> None:
        self.name = name
        self.ended = False
        self._keep_s = keep_s
        self._gone = gone
        self._events: list[bytes] = []
        self._error: Exception | None = None
        self._farewell = b""
        self._news = asyncio.Event()
        self._readers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._make(generation, source), name=f"replay {name}")

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running"
        return f"Replay({self.name}, {state}, {len(self._events)} events, {self._readers} readers)"

    def stream(self, number: int) -> EventStream:
        """A response with the events after that number. Raises RequestError if it has no such."""
        if number > len(self._events):
            raise RequestError(
                f"after: {number} is beyond the last event so far, {len(self._events)}",
                param="after",
            )
        return EventStream(self.name, self._reading(), self._after(number))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """While somebody reads it the stream goes on."""
        self._readers += 1
        if not self.ended:
            self._set_timer(None)
        try:
            yield
        finally:
            self._readers -= 1
            if self._readers == 0 and not self.ended:
                self._set_timer(self._give_up)

    async def _after(self, number: int) -> AsyncGenerator[bytes]:
        """The events after that number, as they come; several may come as one.

        Ends with the stream. Raises what ended it before its first event.
        """
        while True:
            if number < len(self._events):
                start, number = number, len(self._events)
                yield b"".join(self._events[start:number])
            elif not self.ended:
                await self._news.wait()
            elif self._error is not None:
                raise self._error
            else:
                if self._farewell:
                    yield self._farewell
                return

    async def _make(
        self, generation: AbstractContextManager[object], source: AsyncGenerator[bytes]
    ) -> None:
        try:
            with generation:
                async with aclosing(source):
                    async for event in source:
                        self._append(event)
        except Exception as error:  # noqa: BLE001 - readers are told, whatever it was
            words = last_words(self.name, error)
            if self._events and isinstance(error, HandingOver):
                self._farewell = words  # not numbered: the next head's event has that number
            elif self._events:
                self._append(words)
            else:
                self._error = error
        finally:
            self.ended = True
            self._wake()
            self._set_timer(self._forget)

    def _append(self, event: bytes) -> None:
        self._events.append(b"id: %d\n%b" % (len(self._events) + 1, event))
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _give_up(self) -> None:
        self._gone(self)
        self._task.cancel()

    def _forget(self) -> None:
        self._gone(self)

    def _set_timer(self, what: Callable[[], None] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if what is not None:
            self._timer = asyncio.get_running_loop().call_later(self._keep_s, what)


class Replays:
    """The streams that can be come back to, by who opened them and what they are called.

    keep_s: how long one goes on without a reader, and how long it stays after its end.
    """

    def __init__(self, limit: int, keep_s: float) -> None:
        self._limit = limit
        self._keep_s = keep_s
        self._kept: dict[Replay, list[tuple[bytes, str]]] = {}
        self._named: dict[tuple[bytes, str], Replay] = {}

    def __repr__(self) -> str:
        return f"Replays({len(self._kept)} of {self._limit})"

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def open(
        self,
        generation: AbstractContextManager[object],
        source: AsyncGenerator[bytes],
        *,
        holder: bytes,
        names: list[str],
    ) -> Replay:
        """Begin a stream, which owns the generation from now on.

        names: what its holder may call it; of two streams with one name the newer one counts.
        """
        if len(self._kept) >= self._limit:
            ended = next((replay for replay in self._kept if replay.ended), None)
            if ended is not None:
                self._drop(ended)
        replay = Replay(names[0], generation, source, self._keep_s, self._drop)
        keys = [(holder, name) for name in names]
        self._kept[replay] = keys
        self._named |= dict.fromkeys(keys, replay)
        return replay

    def find(self, name: str, holder: bytes) -> Replay:
        """The stream that this holder calls so. Raises RequestError (404).

        Whether somebody else has one of that name must not show.
        """
        replay = self._named.get((holder, name))
        if replay is None:
            raise RequestError(
                f"request {shown(name)}: there is no resumable stream of this id (any more)",
                code="request_not_found",
                status=404,
            )
        return replay

    def _drop(self, replay: Replay) -> None:
        for key in self._kept.pop(replay, ()):
            if self._named.get(key) is replay:
                del self._named[key]
