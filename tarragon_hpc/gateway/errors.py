"""Errors as the OpenAI API words them: a status, headers and an error object. Pure.

What is not a TarragonError is a bug; its client learns that and nothing else, its traceback goes to
the log.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tarragon_hpc.errors import HandingOver, Overloaded, RequestError, TarragonError, Unavailable

RETRY_AFTER_S = 1
# A successor job that waits for this one to end takes its time.
HANDOVER_RETRY_S = 15
HANDOVER = "handover"
# nginx's status for a client that went away; nobody receives it, the log and the metrics show it.
CLIENT_GONE = 499

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class HttpError(NamedTuple):
    """What to answer."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def http_error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> HttpError:
    """An answer with an OpenAI error object."""
    kind = _TYPES.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return HttpError(status, {"error": error}, headers or {})


def explain(error: Exception) -> HttpError:
    """The answer to a request that raised."""
    match error:
        case RequestError():
            # Whoever sends too much may still be sending: the connection is of no more use.
            close = {"connection": "close"} if error.status == 413 else {}
            return http_error(
                error.status, str(error), param=error.param, code=error.code, headers=close
            )
        case Overloaded():
            return http_error(
                429, str(error), code="queue_full", headers={"retry-after": str(RETRY_AFTER_S)}
            )
        case HandingOver():
            return http_error(
                503, str(error), code=HANDOVER, headers={"retry-after": str(HANDOVER_RETRY_S)}
            )
        case Unavailable():
            return http_error(
                503, str(error), code="unavailable", headers={"retry-after": str(RETRY_AFTER_S)}
            )
        case TarragonError():
            return http_error(500, str(error), code="internal_error")
        case _:
            return http_error(500, "internal error; the service's log says more", code="bug")
