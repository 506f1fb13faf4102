"""What responses of both kinds have in common, and the contract of the two that fill it in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tarragon_hpc.gateway.generation import Generation
    from tarragon_hpc.gateway.output import Piece


class Format(Protocol):
    """How one request's pieces are written down, as chunks of a stream or as one response."""

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that come before all pieces."""
        ...

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        """The chunk of one piece. Called in the order of the stream."""
        ...

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that wants its usage."""
        ...

    def response(self, pieces: list[Piece]) -> dict[str, Any]:
        """The whole response; one complete piece per choice."""
        ...


def envelope(generation: Generation, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields around the choices."""
    return {
        "id": generation.id,
        "object": kind,
        "created": generation.created,
        "model": generation.model,
        "choices": choices,
    }
