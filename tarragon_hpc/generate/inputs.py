"""Read a file of requests: OpenAI batch lines and plain prompts, in any mixture.

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": …, …}}
    {"prompt": "Once upon", "max_tokens": 20}          custom_id: the number of the line
    {"messages": [{"role": "user", "content": "Hi"}]}

The whole file is checked before anything runs; a mistake is reported with its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import msgspec

from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

Url = Literal["/v1/completions", "/v1/chat/completions"]

COMPLETIONS: Url = "/v1/completions"
CHAT: Url = "/v1/chat/completions"

_BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input. `body` is what is sent to `url`."""

    custom_id: str
    line: int
    url: Url
    body: dict[str, Any]


class _Mistake(Exception):
    """What is wrong with one line."""


def read_requests(path: str) -> list[Request]:
    """All requests of a file named by path or fsspec URL. Raises UserError naming the line."""
    try:
        with fsspec.open(path, "rb") as file:
            return parse_requests(file, path)
    except (OSError, ValueError, ImportError) as error:  # no such file, protocol or driver
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}") from None


def parse_requests(lines: Iterable[bytes], name: str) -> list[Request]:
    """Requests in the order of the lines; blank lines are skipped. Raises UserError."""
    requests: list[Request] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            request = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, number)
            first = seen.setdefault(request.custom_id, number)
            if first != number:
                raise _Mistake(f"custom_id {request.custom_id!r} is also that of line {first}")
        except _Mistake as mistake:
            raise UserError(f"{name}: line {number}: {mistake}") from None
        requests.append(request)
    if not requests:
        raise UserError(f"{name}: holds no requests")
    return requests


def _parse(line: bytes, number: int) -> Request:
    try:
        data = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Mistake(f"is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise _Mistake("is not a JSON object")
    custom_id = data.pop("custom_id", str(number))
    if not isinstance(custom_id, str) or not custom_id:
        raise _Mistake(f"custom_id {custom_id!r}: must be a non-empty string")
    url, body = _batch(data) if "body" in data else _plain(data)
    if body.get("stream"):
        raise _Mistake("stream: results are written whole, only false is allowed")
    return Request(custom_id, number, url, body)


def _batch(data: dict[str, Any]) -> tuple[Url, dict[str, Any]]:
    extra = sorted(data.keys() - _BATCH_KEYS)
    if extra:
        raise _Mistake(f"{extra[0]}: unknown key; allowed: {', '.join(sorted(_BATCH_KEYS))}")
    if data.get("method", "POST") != "POST":
        raise _Mistake(f"method {data['method']!r}: only 'POST' is allowed")
    url, body = data.get("url"), data["body"]
    if url not in (COMPLETIONS, CHAT):
        raise _Mistake(f"url {url!r}: allowed are {COMPLETIONS} and {CHAT}")
    if not isinstance(body, dict):
        raise _Mistake("body: must be an object")
    return url, body


def _plain(data: dict[str, Any]) -> tuple[Url, dict[str, Any]]:
    if ("prompt" in data) == ("messages" in data):
        raise _Mistake("must have one of prompt, messages, or body")
    return (COMPLETIONS if "prompt" in data else CHAT), data
