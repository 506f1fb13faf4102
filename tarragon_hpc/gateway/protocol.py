"""HTTP connections that cost nothing to keep must not be kept for ever, nor in any number.

uvicorn waits without end for the rest of a request, and takes headers of any length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tarragon_hpc.wire.strangers import Strangers

if TYPE_CHECKING:
    import asyncio

REQUEST_S = 60.0
MAX_HEAD = 64 << 10
MAX_IDLE = 512

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"


class GuardedProtocol(HttpToolsProtocol):
    """A connection without a whole request is idle, also between two requests.

    Of those at most MAX_IDLE are kept, the newest. A request must be there REQUEST_S after its
    first byte (the first one: after the connection), its head within MAX_HEAD bytes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience: asyncio.TimerHandle | None = None
        self._in_head = 0
        # One for all connections of a server; its state is the one thing that they share.
        state = self.server_state
        if not hasattr(state, "idle"):
            state.idle = Strangers(MAX_IDLE)  # type: ignore[attr-defined]
        self._idle: Strangers = state.idle  # type: ignore[attr-defined]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        self._idle.add(self, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.discard(self)
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head >= 0:
            self._in_head += len(data)
        super().data_received(data)
        if self._in_head > MAX_HEAD:
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = max(self._in_head, 0)
        self._await_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._idle.discard(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._idle.add(self, self.transport.abort)
        super().on_response_complete()

    def _await_request(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
