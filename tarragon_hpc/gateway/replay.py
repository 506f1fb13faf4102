"""Streams that a client can come back to: their events are kept, and they go on without it.

The server-sent events of such a stream are numbered from 1. They follow from the tokens alone
(`ordered`), so a head that knows the tokens makes the same events with the same numbers.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import HandingOver, RequestError
from tarragon_hpc.gateway.fields import shown
from tarragon_hpc.gateway.ongoing import Ongoing
from tarragon_hpc.gateway.stream import EventStream, last_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
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


class Replay(Ongoing):
    """The events of one stream so far, and the task that makes them.

    generation: entered while events are made; leaving it ends what still runs. source: the events,
    without numbers. The rest is as for `Ongoing`.
    """

    def __init__(
        self,
        name: str,
        generation: AbstractContextManager[object],
        source: AsyncGenerator[bytes],
        keep_s: float,
        gone: Callable[[Any], None],
        *,
        asleep: bool = False,
    ) -> None:
        super().__init__(name, keep_s, gone, asleep=asleep)
        self._generation = generation
        self._source = source
        self._restored = asleep
        self._events: list[bytes] = []
        self._error: Exception | None = None

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running"
        return f"Replay({self.name}, {state}, {len(self._events)} events, {self._readers} readers)"

    def stream(self, number: int) -> EventStream:
        """A response with the events after that number. Raises RequestError if it has no such.

        Of a stream that another head had begun the client may have more than is known here: it
        goes on where the client is.
        """
        if number > len(self._events) and (self.ended or not self._restored):
            raise RequestError(
                f"after: {number} is beyond the last event so far, {len(self._events)}",
                param="after",
            )
        return EventStream(self.name, self.reading(), self._after(number))

    async def _after(self, number: int) -> AsyncGenerator[bytes]:
        """The events after that number, as they come; several may come as one.

        Ends with the stream. Raises what ended it before its first event.
        """
        while True:
            if self.cut:
                error = HandingOver(self.cut)
                if not self._events:
                    raise error
                # Not numbered: the next head's event has the number that this would have.
                yield last_words(self.name, error)
                return
            if number < len(self._events):
                start, number = number, len(self._events)
                yield b"".join(self._events[start:number])
            elif not self.ended:
                await self._news.wait()
            elif self._error is not None:
                raise self._error
            else:
                return

    async def _make(self) -> None:
        try:
            with self._generation:
                async with aclosing(self._source) as source:
                    async for event in source:
                        self._append(event)
        except Exception as error:  # noqa: BLE001 - readers are told, whatever it was
            words = last_words(self.name, error)
            if self._events:
                self._append(words)
            else:
                self._error = error

    def _append(self, event: bytes) -> None:
        self._events.append(b"id: %d\n%b" % (len(self._events) + 1, event))
        self._tell()
