"""The outcome of one engine step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarragon_hpc.errors import RequestError, TransportError
    from tarragon_hpc.wire.common import Resumption, TokenDelta


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought: tokens, or the sequences that were lost with it, and why.

    refused: sequences whose structured output turned out to be impossible, and why.
    idle: nothing could run, since all sequences wait for something from outside (KV from a store,
    a grammar that is being compiled).
    """

    tokens: list[TokenDelta] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    loss: TransportError | None = None
    refused: dict[str, RequestError] = field(default_factory=dict)
    resumed: list[Resumption] = field(default_factory=list)
    idle: bool = False
