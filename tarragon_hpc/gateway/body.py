"""The JSON body of a request, read within its limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tarragon_hpc.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request


async def read_json_body(request: Request, limit: int) -> Any:
    """The decoded body. Raises RequestError: not JSON (400), more than `limit` bytes (413)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):
        raise RequestError(f"content-type: must be application/json, not {kind[:80]}")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise _too_long(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_long(limit)
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None


def _too_long(limit: int) -> RequestError:
    return RequestError(
        f"the body is longer than {limit} bytes (gateway.max_body)",
        status=413,
        code="body_too_large",
    )
