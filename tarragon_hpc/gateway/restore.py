"""Sequences as an earlier head left them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.gateway.records import recall
from tarragon_hpc.gateway.state import SequenceState

if TYPE_CHECKING:
    from tarragon_hpc.gateway.records import Kept

# A head gives no sequence to more AWs than this; attempts are 32 bits on the way to a store.
_ATTEMPTS_PER_HEAD = 1 << 20


def first_attempt(head: int) -> int:
    """From where the head of this number counts the attempts of what an earlier one had opened."""
    return head * _ATTEMPTS_PER_HEAD


def restore(kept: Kept, attempt: int) -> list[SequenceState]:
    """The sequences of a request, with all that is known of them."""
    opened = kept.opened
    states = []
    for position, log in enumerate(kept.logs):
        ended = kept.ended.get(position)
        problem = ended.problem if ended is not None else None
        states.append(
            SequenceState(
                request=opened.sequences[position],
                prompt=opened.prompt(position),
                sampling=opened.sampling[position],
                attempt=attempt,
                log=log,
                error=recall(problem) if problem is not None else None,
                name=opened.id,
                kept=True,
                stopped=ended is not None and problem is None,
            )
        )
    return states
