"""The outcome of one engine step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarragon_hpc.errors import RequestError, TransportError
    from tarragon_hpc.wire.common import TokenDelta


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought: tokens, or the sequences that were lost with it, and why.

    refused: sequences whose structured output turned out to be impossible, and why.
    """

    tokens: list[TokenDelta] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    loss: TransportError | None = None
    refused: dict[str, RequestError] = field(default_factory=dict)
