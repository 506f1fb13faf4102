"""The HTTP server inside the head's event loop: the socket, the start and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Self

import uvicorn

from tarragon_hpc.errors import ConfigError
from tarragon_hpc.gateway.protocol import GuardedProtocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from fastapi import FastAPI

_BACKLOG = 2048
_KEEP_ALIVE_S = 30


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises ConfigError naming the key at fault."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError("gateway.host", f"{host!r}: {error.strerror or error}") from None
    # asyncio switches Nagle's algorithm off only if a socket says that it is TCP; with it on, a
    # token waits up to 40 ms for the acknowledgement of the one before.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                "gateway.port",
                f"{port} is in use on {host}; choose another one, or 0 for any free port",
            ) from None
        key = "gateway.port" if error.errno == errno.EACCES else "gateway.host"
        raise ConfigError(key, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


class _Uvicorn(uvicorn.Server):
    """Signals belong to the head, not to its HTTP server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an app on a listening socket, which it owns, until it is stopped.

    Use as `async with HttpServer(app, listen(host, port)):`. Leaving gives running responses
    `grace_s` seconds, then cuts them. `tls`: None for plain HTTP.
    """

    def __init__(
        self,
        app: FastAPI,
        sock: socket.socket,
        *,
        grace_s: int = 2,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = sock
        self._name: tuple[str, int] = sock.getsockname()[:2]
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=grace_s,
        )
        config.load()
        config.ssl = tls  # `load` would make a context of its own from files
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"HttpServer({self.host}:{self.port}, {'up' if self._task else 'down'})"

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._name[0]

    @property
    def port(self) -> int:
        """The port it listens on, also if 0 was asked for."""
        return self._name[1]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="http-server")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
            self._task = None
        self._socket.close()
