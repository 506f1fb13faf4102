"""Length-prefixed msgspec frames: 4 bytes of length (big endian), then MessagePack.

Sans-IO. Every receiver has one closed union of messages; anything else is a FrameError and ends
the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire.to_client import ToClient
from tarragon_hpc.wire.to_head import ToHead
from tarragon_hpc.wire.to_worker import Alive, ToWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tarragon_hpc.wire.common import Message

MAX_FRAME = 64 << 20
_PREFIX = 4
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """One frame. Raises FrameError if it is longer than any receiver takes."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return len(body).to_bytes(_PREFIX, "big") + body


class FrameDecoder(Generic[M]):
    """Turns bytes, in whatever pieces they arrive, into messages of one union."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Add bytes; yields the messages they complete. Raises FrameError on garbage."""
        self._buffer += data
        while len(self._buffer) >= _PREFIX:
            size = int.from_bytes(self._buffer[:_PREFIX], "big")
            if size > MAX_FRAME:
                raise FrameError(f"frame of {size} bytes is over the limit of {MAX_FRAME}")
            if len(self._buffer) < _PREFIX + size:
                return
            body = bytes(self._buffer[_PREFIX : _PREFIX + size])
            del self._buffer[: _PREFIX + size]
            try:
                message = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise FrameError(f"not a valid message: {error}") from None
            yield message


def head_decoder() -> FrameDecoder[ToHead]:
    """What the head receives."""
    return FrameDecoder(ToHead)


def worker_decoder() -> FrameDecoder[ToWorker | Alive]:
    """What a worker receives."""
    return FrameDecoder(ToWorker | Alive)


def client_decoder() -> FrameDecoder[ToClient]:
    """What a command-line client receives."""
    return FrameDecoder(ToClient)
