"""What the gateway knows of one sequence, and what it shows of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.gateway.tokenlog import TokenLog

if TYPE_CHECKING:
    from tarragon_hpc.errors import TarragonError
    from tarragon_hpc.gateway.handle import Handle
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.wire.common import SamplingSpec, TokenLogprobs


class Delta(NamedTuple):
    """What a sequence has produced since its handle was last read.

    sequence: position in the list that was opened. finish, stop_reason: vLLM's, on the last one.
    """

    sequence: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish: str | None
    stop_reason: int | None


@dataclass(slots=True, eq=False)
class SequenceState:
    """One sequence, from `open` until its end has been read: all that running it again takes.

    owner: the AW incarnation that runs it; None once it has ended. error: why it ended early.
    """

    request: str
    prompt: list[int]
    sampling: SamplingSpec
    owner: Incarnation | None
    log: TokenLog = field(default_factory=TokenLog)
    error: TarragonError | None = None
    handle: Handle | None = None
    position: int = 0

    def notify(self) -> None:
        """There is something to read."""
        if self.handle is not None:
            self.handle.notify(self.position)


@dataclass(frozen=True, slots=True)
class SessionStats:
    """A snapshot. `open` counts sequences whose end has not been read, `running` those on an AW.

    ended: how sequences ended (finished, aborted, refused, failed) since the start.
    dropped: token deltas that changed nothing, by cause (stale, unknown, duplicate, …).
    running_on: AW id → sequences, one entry per AW that serves.
    masked: expert calls that were left out because nobody served the expert.
    longest_gap_s: between two arrivals of tokens of one sequence, of all since the start.
    """

    serving: bool
    reason: str
    open: int
    running: int
    tokens: int
    ended: dict[str, int]
    dropped: dict[str, int]
    running_on: dict[str, int]
    masked: int = 0
    longest_gap_s: float = 0.0
