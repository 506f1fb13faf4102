"""Server-sent events, and noticing that nobody listens any more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response

from tarragon_hpc.errors import TarragonError
from tarragon_hpc.gateway.errors import explain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine
    from contextlib import AbstractContextManager

    from starlette.types import Receive, Scope, Send

    from tarragon_hpc.gateway.errors import HttpError
    from tarragon_hpc.gateway.formats import Format
    from tarragon_hpc.gateway.generation import Generation
    from tarragon_hpc.gateway.schema import StreamOptions

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class JsonResponse(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content)


def error_response(error: HttpError) -> Response:
    """The response that an error becomes."""
    return JsonResponse(error.body, error.status, error.headers)


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + _encode(data) + b"\n\n"


async def events(
    generation: Generation, form: Format, options: StreamOptions | None
) -> AsyncGenerator[bytes]:
    """The events of a stream, at least one per piece, the last one DONE. Raises TarragonError.

    Nothing comes before the first piece, so that what fails early still has a status of its own.
    """
    usage = options is not None and options.include_usage
    continuous = usage and options is not None and options.continuous_usage_stats
    opened = False
    async with aclosing(generation.pieces()) as pieces:
        async for choice, piece in pieces:
            if not opened:
                opened = True
                for i, chunk in enumerate(form.opening()):
                    count = {"usage": generation.usage(i, generated=0)} if continuous else {}
                    yield event(chunk | count)
            chunk = form.chunk(choice, piece)
            yield event(chunk | ({"usage": generation.usage(choice)} if continuous else {}))
    if usage:
        yield event(form.usage_chunk())
    yield DONE


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if the client went away first, and `work` is then cancelled.

    The body of the request must have been read.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def last_words(name: str, error: Exception) -> bytes:
    """The event that ends a stream early. Logs the error under the name of its generation."""
    if isinstance(error, TarragonError):
        _log.warning("%s ended early: %s", name, error)
    else:
        _log.error("%s failed", name, exc_info=error)
    return event(explain(error).body)


class EventStream(Response):
    """Streams events for as long as the client listens. `held` is entered before the first of them
    and left however the stream ends; `name` is for the log.

    An error before the first event is raised, to become a response of its own; a later one becomes
    the last event, and there is no DONE after it.
    """

    media_type = "text/event-stream"

    def __init__(
        self, name: str, held: AbstractContextManager[object], source: AsyncGenerator[bytes]
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._name = name
        self._held = held
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await until_disconnect(receive, self._pump(send))

    async def _pump(self, send: Send) -> None:
        started = False

        async def emit(chunk: bytes, *, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                status, headers = self.status_code, self.raw_headers
                await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": chunk, "more_body": more})

        try:
            async with aclosing(self._source) as source:
                async for chunk in source:
                    await emit(chunk)
        except Exception as error:
            if not started:
                raise
            await emit(last_words(self._name, error))
        await emit(b"", more=False)
