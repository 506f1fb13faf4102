"""What every HTTP request passes first: its id, the key, the count, the log line."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from tarragon_hpc.gateway.errors import CLIENT_GONE, explain, http_error
from tarragon_hpc.gateway.stream import error_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tarragon_hpc.gateway.metrics import GatewayMetrics

_log = logging.getLogger(__name__)

# For load balancers and scrapers, which have no keys.
OPEN_PATHS = frozenset({"/health", "/metrics"})
# What is counted by name; anything else is a client's invention and would fill the registry.
_COUNTED = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/models", "/version", "/status", *OPEN_PATHS}
)
_RESUMED = "/v1/requests"


class KeyRing:
    """The API keys that open the gateway. Pure; without keys everybody may come in."""

    def __init__(self, keys: Sequence[str] | None) -> None:
        self._digests = [self._digest(key) for key in keys or ()]

    def admits(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the keys, in constant time."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = self._digest(key.strip())
        # Every key is compared: which one came close must not show either.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    def holder(self, authorization: str | None) -> bytes:
        """Who an admitted header stands for: equal for requests with the same key, else different.

        Without keys everybody is the same.
        """
        return self._digest(
            (authorization or "").partition(" ")[2].strip() if self._digests else ""
        )

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class FrontDoor:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: GatewayMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        start = time.perf_counter()
        path = scope["path"]
        try:
            if path in OPEN_PATHS or self._keys.admits(headers.get("authorization")):
                await self._app(scope, receive, tagged)
            else:
                denied = http_error(
                    401,
                    "a valid API key is required: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
                await error_response(denied)(scope, receive, tagged)
        except ClientDisconnect:
            pass
        except Exception as error:
            _log.exception("request %s: %s %s failed", request_id, scope["method"], path)
            if status:
                # The response has begun: let the server cut the connection.
                raise
            await error_response(explain(error))(scope, receive, tagged)
        finally:
            status = status or CLIENT_GONE
            self._metrics.requests.labels(_counted(path), str(status)).inc()
            level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
            _log.log(
                level,
                "request %s: %s %s %d in %.3f s",
                request_id,
                scope["method"],
                path,
                status,
                time.perf_counter() - start,
            )


def _counted(path: str) -> str:
    if path.startswith(f"{_RESUMED}/"):
        return _RESUMED
    return path if path in _COUNTED else "other"


def _request_id(given: str | None) -> str:
    """The client's X-Request-Id if it is fit for a log line and a header, else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex
