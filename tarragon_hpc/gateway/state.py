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

    Times are seconds of the monotonic clock. owner: the AW incarnation that runs it; None while it
    waits for one and once it has ended. attempt: how many AWs it was given to, counted from
    what its head begins with. error: why it ended early. name: what its client calls the answer
    that it is part of.

    Once an AW could not go on with it: `left` is that AW and `reason` why, `stalled` when its last
    token had come (or it was opened), `waits` since when nobody runs it. fruitless: how often in a
    row an AW was lost with it before it had produced another token.

    kept: what becomes of it is written to the request log. stopped: its text has come to a stop
    string.
    """

    request: str
    prompt: list[int]
    sampling: SamplingSpec
    opened: float = 0.0
    owner: Incarnation | None = None
    attempt: int = 0
    log: TokenLog = field(default_factory=TokenLog)
    error: TarragonError | None = None
    handle: Handle | None = None
    position: int = 0
    left: Incarnation | None = None
    reason: str = ""
    stalled: float = 0.0
    waits: float = 0.0
    fruitless: int = 0
    name: str = ""
    kept: bool = False
    stopped: bool = False

    @property
    def progressed(self) -> float:
        """When its last token came; when it was opened, if none has."""
        return self.opened if self.log.arrived is None else self.log.arrived

    @property
    def full(self) -> bool:
        """Whether it has all the tokens it may have: nobody can go on with it."""
        return len(self.log.token_ids) >= self.sampling.max_tokens

    def gap_s(self, now: float) -> float:
        """How long its stream stood still for its last move; it may still do so."""
        return (self.progressed if self.progressed > self.stalled else now) - self.stalled

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
    moved: how often a sequence was given to another AW. restored, recomputed: how often that AW
    went on with it, with KV from a checkpoint store and without.
    waiting: sequences that no AW runs now, because theirs was lost and no other one serves.
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
    moved: int = 0
    restored: int = 0
    recomputed: int = 0
    waiting: int = 0
