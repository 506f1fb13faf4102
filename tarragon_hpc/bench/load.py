"""Streams of requests against a service, with the arrival of every token noted.

A plain client of our own: what it costs comes out of the cores that the service has, and httpx
needs ten times as much per event.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from tarragon_hpc.bench.arrivals import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RETRY_S = 0.05
_DATA = b"data: "
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Prompt(NamedTuple):
    """What is asked for: token ids, how many new ones, and how they are chosen."""

    tokens: list[int]
    new_tokens: int
    temperature: float = 0.0
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        """The request that streams it."""
        body = {
            "prompt": self.tokens,
            "max_tokens": self.new_tokens,
            "temperature": self.temperature,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        return body if self.seed is None else body | {"seed": self.seed}


class Load:
    """Keeps `streams` requests running, the prompts in turn.

    `all` has every stream that was begun, also those that still run.
    """

    def __init__(self, endpoint: str, prompts: Sequence[Prompt], streams: int) -> None:
        self.all: list[Stream] = []
        self._endpoint = endpoint
        self._prompts = prompts
        self._streams = streams
        self._next = 0
        self._ending = False

    def end(self) -> None:
        """Begin no more; `run` returns when those that run have ended."""
        self._ending = True

    async def run(self) -> None:
        """Until `end`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._streams):
                group.create_task(self._keep_asking())

    async def once(self, wanted: Sequence[int]) -> None:
        """Each of these prompts once, all at the same time."""
        await asyncio.gather(*(self._ask(number) for number in wanted))

    async def _keep_asking(self) -> None:
        while not self._ending:
            number, self._next = self._next, (self._next + 1) % len(self._prompts)
            stream = await self._ask(number)
            if stream.error is not None:
                await asyncio.sleep(_RETRY_S)

    async def _ask(self, number: int) -> Stream:
        stream = Stream(number, time.monotonic())
        self.all.append(stream)
        await follow(self._endpoint, self._prompts[number], stream)
        return stream


async def follow(
    endpoint: str, prompt: Prompt, stream: Stream, heard: Callable[[], None] | None = None
) -> None:
    """Ask for a prompt and note what comes in `stream`, to its end, whichever; `heard`: at once
    after every piece.
    """

    def take(name: str, ids: list[int]) -> None:
        stream.take(ids, time.monotonic())
        stream.id = name
        if heard is not None:
            heard()

    try:
        stream.error = await stream_completion(endpoint, prompt.body(), take)
    except OSError as error:
        stream.error = f"{type(error).__name__}: {error}"
    stream.done = stream.error is None


async def stream_completion(
    endpoint: str, body: dict[str, Any], take: Callable[[str, list[int]], None]
) -> str | None:
    """Stream one completion; `take` gets its id and new token ids. Returns what went wrong, None if
    nothing.

    Reads our own gateway's answers: one event per HTTP chunk, each on lines of its own. Raises
    OSError if there is no connection, or one to somebody whose certificate is not trusted.
    """
    url = urlsplit(endpoint)
    assert url.hostname is not None
    # Trusts what OpenSSL does, so also what SSL_CERT_FILE names.
    tls = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=tls)
    try:
        data = _encode(body)
        writer.write(
            f"POST {url.path}/completions HTTP/1.1\r\nhost: {url.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
            "connection: close\r\n\r\n".encode()
            + data
        )
        status = (await reader.readline()).split()
        if len(status) < 2 or status[1] != b"200":
            rest = (await reader.read(4096)).decode(errors="replace")
            return f"HTTP {b' '.join(status[1:]).decode()}: {rest.rpartition(chr(10))[2]}"
        while line := await reader.readline():
            if not line.startswith(_DATA):
                continue
            if line.startswith(b"data: [DONE]"):
                return None
            event = _decode(line[len(_DATA) :])
            if "error" in event:
                return str(event["error"]["message"])
            for choice in event["choices"]:
                take(event["id"], choice["token_ids"])
        return "the connection ended before the stream did"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
