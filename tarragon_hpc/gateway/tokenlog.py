"""The output of one sequence as it is known to the gateway. Pure: the log decides what is new.

A delta names the position of its first token, so one that comes twice changes nothing, and one
that would leave a hole is never let in: what a client reads from the log is every token once, in
order (DESIGN invariant 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarragon_hpc.wire.common import TokenDelta, TokenLogprobs


class Verdict(StrEnum):
    """What a delta is to a log."""

    NEW = "new"
    DUPLICATE = "duplicate"
    GAP = "gap"
    CONFLICT = "conflict"
    MALFORMED = "malformed"


@dataclass(slots=True)
class TokenLog:
    """Tokens so far; `finish` is set once, with the last of them.

    logprobs: one entry per token if `with_logprobs`, else empty. masked: expert calls that were
    left out so far; masks: (steps of the log after which it is known, how many). arrived: when
    tokens came last. gap_s: the longest time between two arrivals. finish_alone: the finish came
    after the last token, not with it.

    The steps of a log are its tokens, and one more for a finish that came alone: how it came in
    does not show in them beyond that, so what is told step by step is told again alike.
    """

    with_logprobs: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | None = None
    finish_alone: bool = False
    masked: int = 0
    masks: list[tuple[int, int]] = field(default_factory=list)
    gap_s: float | None = None
    arrived: float | None = None

    def judge(self, delta: TokenDelta) -> Verdict:
        """What `append` would do with a delta; changes nothing.

        NEW: it adds tokens or the finish. DUPLICATE: nothing in it is new. GAP: tokens before it
        are missing. CONFLICT: it contradicts the log. MALFORMED: it contradicts itself.
        """
        count = len(delta.token_ids)
        if delta.index < 0 or (self.with_logprobs and len(delta.logprobs or ()) != count):
            return Verdict.MALFORMED
        have = len(self.token_ids)
        if delta.index > have:
            return Verdict.GAP
        known = min(have - delta.index, count)
        if self.token_ids[delta.index : delta.index + known] != delta.token_ids[:known]:
            return Verdict.CONFLICT
        if delta.index + count < have:
            return Verdict.DUPLICATE
        if self.finish is not None:
            return Verdict.DUPLICATE if known == count else Verdict.CONFLICT
        if known == count and delta.finish is None:
            return Verdict.DUPLICATE
        return Verdict.NEW

    def append(self, delta: TokenDelta, now: float | None = None) -> Verdict:
        """Take in what is new in a delta that came `now`, and say what it was."""
        verdict = self.judge(delta)
        if verdict is Verdict.NEW:
            known = len(self.token_ids) - delta.index
            if known < len(delta.token_ids) and now is not None:
                self._time(now)
            self.token_ids += delta.token_ids[known:]
            if self.with_logprobs and delta.logprobs is not None:
                self.logprobs += delta.logprobs[known:]
            alone = known == len(delta.token_ids)
            if delta.masked:
                self.masked += delta.masked
                self.masks.append((len(self.token_ids) + alone, delta.masked))
            self.end(delta.finish, delta.stop_reason, alone=alone)
        return verdict

    def end(
        self, finish: str | None, stop_reason: int | None = None, *, alone: bool = True
    ) -> None:
        """It is finished; None: it is not, after all. alone: no token came with it."""
        self.finish, self.stop_reason = finish, stop_reason
        self.finish_alone = alone and finish is not None

    def masked_until(self, steps: int) -> int:
        """Expert calls that were left out in the first so many steps."""
        return sum(masked for step, masked in self.masks if step <= steps)

    def _time(self, now: float) -> None:
        if self.arrived is not None:
            self.gap_s = max(self.gap_s or 0.0, now - self.arrived)
        self.arrived = now
