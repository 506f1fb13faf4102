"""How a batch is doing, without a terminal: numbers for `status`, a line for the log. Pure.

Time is given as seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from tarragon_hpc.observe.batch_words import batch_line

if TYPE_CHECKING:
    from tarragon_hpc.generate.outputs import Outcome
    from tarragon_hpc.generate.report import Tally

WINDOW_S = 60.0


class _Mark(NamedTuple):
    """What had been done at some moment."""

    at: float
    done: int
    tokens: int


class Progress:
    """Counts results. `before`: of earlier heads; `since`: when the first of them began (1970)."""

    def __init__(self, total: int, before: Tally, since: float, now: float) -> None:
        self.total = total
        self.tally = before
        self.state = "starting"
        self._since = since
        self._marks = deque([_Mark(now, before.done, before.tokens)])

    def __repr__(self) -> str:
        return f"Progress({self.tally.done} of {self.total}, {self.state})"

    def begin(self, now: float) -> None:
        """Requests are sent from now on: what came before tells nothing of the speed."""
        self.state = "running"
        self._marks = deque([_Mark(now, self.tally.done, self.tally.tokens)])

    def add(self, outcome: Outcome, now: float) -> None:
        """Count a result."""
        self.tally.add(outcome)
        last = _Mark(now, self.tally.done, self.tally.tokens)
        if len(self._marks) > 1 and now - self._marks[-2].at < 1.0:
            self._marks[-1] = last  # one mark a second is enough
        else:
            self._marks.append(last)
        self._forget(now)

    def plain(self, now: float, wall: float) -> dict[str, Any]:
        """For `status`. eta_s is None as long as nothing can be said of it."""
        self._forget(now)
        tally = self.tally
        left, speed, tokens = self.total - tally.done, *self._speed(now)
        eta = 0.0 if left == 0 else left / speed if speed else None
        return {
            "state": self.state,
            "total": self.total,
            "done": tally.done,
            "refused": tally.refused,
            "failed": tally.failed,
            "prompt_tokens": tally.prompt_tokens,
            "tokens": tally.tokens,
            "tokens_per_s": round(tokens, 1),
            "eta_s": None if eta is None else round(eta, 1),
            "since": round(self._since, 3),
            "elapsed_s": round(max(0.0, wall - self._since), 1),
        }

    def line(self, now: float, wall: float) -> str:
        """For the log."""
        return batch_line(self.plain(now, wall))

    def _speed(self, now: float) -> tuple[float, float]:
        """Requests and tokens per second, over the last minute or since the beginning."""
        first, last = self._marks[0], self._marks[-1]
        seconds = now - first.at
        if seconds <= 0:
            return 0.0, 0.0
        return (last.done - first.done) / seconds, (last.tokens - first.tokens) / seconds

    def _forget(self, now: float) -> None:
        """All marks but the newest that is a minute old."""
        while len(self._marks) > 1 and self._marks[1].at <= now - WINDOW_S:
            self._marks.popleft()
