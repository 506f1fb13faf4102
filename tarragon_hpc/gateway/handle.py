"""What one HTTP request holds of the sessions: its sequences, and how it reads them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from tarragon_hpc.gateway.state import Delta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tarragon_hpc.gateway.state import SequenceState


class Handle:
    """An async iterator over the deltas of sequences that were opened together.

    A slow reader gets fewer, longer deltas: nothing is buffered but the token logs. Ends when every
    sequence has ended; raises the error of the first that failed, after its last tokens. Leave it
    through `close` (or `with`): sequences that still run are then aborted. One reader, one loop.
    """

    def __init__(
        self, sequences: Sequence[SequenceState], release: Callable[[list[SequenceState]], None]
    ) -> None:
        self._sequences = list(sequences)
        self._release = release
        self._read = [0] * len(sequences)
        self._unread = set(range(len(sequences)))
        self._news: dict[int, None] = {}
        self._wake = asyncio.Event()
        for i, sequence in enumerate(self._sequences):
            sequence.handle, sequence.position = self, i

    def __repr__(self) -> str:
        return f"Handle({len(self._unread)} of {len(self._sequences)} sequences open)"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while self._unread:
            while self._news:
                position = next(iter(self._news))
                del self._news[position]
                delta = self._take(position)
                if delta is not None:
                    return delta
            self._wake.clear()
            if self._unread:
                await self._wake.wait()
        raise StopAsyncIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def masked(self, position: int) -> int:
        """Expert calls that were left out of a sequence, as far as it has been read."""
        return self._sequences[position].log.masked_until(self._read[position])

    @property
    def sequences(self) -> list[SequenceState]:
        """The sequences, in the order in which they were opened."""
        return self._sequences

    def gaps(self) -> list[float]:
        """The longest time between two arrivals of tokens, of every sequence that had two."""
        logs = [sequence.log for sequence in self._sequences]
        return [log.gap_s for log in logs if log.gap_s is not None]

    def notify(self, position: int) -> None:
        """Called by the sessions: this sequence has news."""
        if position in self._unread:
            self._news[position] = None
            self._wake.set()

    def abort(self, position: int) -> None:
        """Stop one sequence (a stop string was found); the others go on."""
        if position in self._unread:
            self._sequences[position].stopped = True
            self._end([position])

    def close(self) -> None:
        """Stop whatever still runs and forget all. Safe to call twice."""
        self._end(list(self._unread))

    def _take(self, position: int) -> Delta | None:
        sequence = self._sequences[position]
        log, start = sequence.log, self._read[position]
        if start == len(log.token_ids) and log.finish is None:
            if sequence.error is None:
                return None
            error = sequence.error
            self.close()
            raise error
        self._read[position] = len(log.token_ids) + log.finish_alone
        if log.finish is not None:
            self._end([position])
        elif sequence.error is not None:
            self._news[position] = None
        return Delta(
            position, log.token_ids[start:], log.logprobs[start:], log.finish, log.stop_reason
        )

    def _end(self, positions: list[int]) -> None:
        self._unread.difference_update(positions)
        for position in positions:
            self._news.pop(position, None)
        self._wake.set()
        self._release([self._sequences[p] for p in positions])
