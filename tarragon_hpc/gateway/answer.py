"""Answers that a client may ask for twice: the same request again gets the same answer.

A request with an Idempotency-Key is answered once, whoever sends it again and how often: what is
being made is waited for, what is done is there for a while. Batches (`tarragon generate`) send
every request so; after a change of heads it goes on from the tokens that are known.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from tarragon_hpc.errors import HandingOver, RequestError, Unavailable
from tarragon_hpc.gateway.fields import shown
from tarragon_hpc.gateway.ongoing import Ongoing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager

HEADER = "idempotency-key"
_MAX_KEY = 255

_canonical = msgspec.json.Encoder(order="deterministic").encode


def read_key(header: str | None) -> str | None:
    """The Idempotency-Key of a request, if it has one. Raises RequestError."""
    if header is None:
        return None
    if not (0 < len(header) <= _MAX_KEY and header.isascii() and header.isprintable()):
        raise RequestError(
            f"Idempotency-Key: must be 1 to {_MAX_KEY} printable ASCII characters"
            f" (got {shown(header)})",
            param="Idempotency-Key",
        )
    return header


def digest(kind: str, body: Any) -> bytes:
    """Equal for equal requests of one kind; the order of the fields does not matter."""
    return hashlib.sha256(kind.encode() + b" " + _canonical(body)).digest()


class Answer(Ongoing):
    """One answer, and the task that makes it.

    generation: entered while it is made. source: makes the answer in JSON types. asked: the digest
    of the request. If it fails it is `gone` at once: who asks again has it tried again.
    """

    def __init__(
        self,
        name: str,
        generation: AbstractContextManager[object],
        source: Coroutine[Any, Any, Any],
        asked: bytes,
        keep_s: float,
        gone: Callable[[Any], None],
        *,
        asleep: bool = False,
    ) -> None:
        super().__init__(name, keep_s, gone, asleep=asleep)
        self._generation = generation
        self._source = source
        self._asked = asked
        self._value: Any = None
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"Answer({self.name}, {'ended' if self.ended else 'running'})"

    def check(self, asked: bytes) -> None:
        """Raises RequestError (409) if it was asked something else under this key."""
        if asked != self._asked:
            raise RequestError(
                f"Idempotency-Key: {shown(self.name)} was sent with another request before; use a"
                " new key for a new request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
                status=409,
            )

    async def get(self) -> Any:
        """The answer, once it is there. Raises what its making raised."""
        with self.reading():
            while not self.ended:
                await self._news.wait()
        if self._value is not None:
            return self._value
        if self.cut:
            raise HandingOver(self.cut)
        # Without an error nobody was there for too long, and it was given up.
        raise self._error or Unavailable("the request was given up; send it again")

    async def _make(self) -> None:
        try:
            with self._generation:
                self._value = await self._source
        except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it was
            self._error = error
            self._gone(self)
        finally:
            self._source.close()
