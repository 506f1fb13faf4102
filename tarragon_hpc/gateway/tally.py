"""How sequences end, and the counts of all of them since the start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tarragon_hpc.gateway.records import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.errors import TarragonError
    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.wire.common import TokenDelta


class Tell(Protocol):
    """Writes a line about an AW into the run's timeline; details are strings and numbers."""

    def __call__(self, event: str, worker: str, incarnation: int, **detail: Any) -> None: ...


def tell_nobody(event: str, worker: str, incarnation: int, **detail: Any) -> None:
    """For gateways without a timeline."""


class Notebook(Protocol):
    """Where what becomes of kept sequences is written down, before anybody is told."""

    def produced(self, items: Sequence[Item]) -> None:
        """One message's tokens of sequences."""

    def ended(self, request: str, error: TarragonError | None) -> None:
        """A sequence ended by an error, or (None) at a stop string."""


@dataclass(slots=True)
class Tally:
    """The fields are those of `state.SessionStats`; `resumed` is restored and recomputed."""

    notebook: Notebook | None = None

    tokens: int = 0
    masked: int = 0
    longest_gap_s: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    resumed: Counter[str] = field(default_factory=Counter)

    def took_in(self, state: SequenceState, delta: TokenDelta, new: int) -> None:
        """A delta was logged; `new` of its tokens were."""
        self.tokens += new
        self.masked += delta.masked
        self.longest_gap_s = max(self.longest_gap_s, state.log.gap_s or 0.0)

    def finish(self, state: SequenceState) -> None:
        """A sequence is complete: `log.finish` is set. No AW runs it any more."""
        self.ended["finished"] += 1
        state.notify()

    def fill(self, state: SequenceState) -> None:
        """A sequence has all the tokens that it may have, and nobody has said that it is done."""
        state.log.end("length")
        if state.kept and self.notebook is not None:
            end = Item(state.request, len(state.log.token_ids), [], "length")
            self.notebook.produced([end])
        self.finish(state)

    def stopped(self, state: SequenceState) -> None:
        """The text of a sequence has come to a stop string."""
        if state.kept and self.notebook is not None:
            self.notebook.ended(state.request, None)

    def fail(self, state: SequenceState, error: TarragonError, how: str = "failed") -> None:
        """A sequence ends before it is complete. No AW runs it any more."""
        state.error = error
        self.ended[how] += 1
        if state.kept and self.notebook is not None:
            self.notebook.ended(state.request, error)
        state.notify()
