"""How a request that is kept is read: token by token, its sequences in turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.gateway.handle import Handle
from tarragon_hpc.gateway.state import Delta

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tarragon_hpc.gateway.state import SequenceState

# What is all there already, after a change of heads, is read without holding up the others.
_AT_ONCE = 64


class OrderedHandle(Handle):
    """A handle whose deltas follow from the token logs alone, however the tokens came in.

    Every delta is one step of a log. The sequences take turns, those that have ended drop out; one
    that is behind holds up the others, and an error is raised when its turn has come.
    """

    def __init__(
        self, sequences: Sequence[SequenceState], release: Callable[[list[SequenceState]], None]
    ) -> None:
        super().__init__(sequences, release)
        self._turn = 0
        self._at_once = 0

    async def __anext__(self) -> Delta:
        while self._unread:
            if self._turn not in self._unread:
                self._advance()
                continue
            delta = self._take(self._turn)
            if delta is not None:
                self._advance()
                self._at_once += 1
                if self._at_once == _AT_ONCE:
                    self._at_once = 0
                    await asyncio.sleep(0)
                return delta
            self._at_once = 0
            self._wake.clear()
            await self._wake.wait()
        raise StopAsyncIteration

    def _advance(self) -> None:
        self._turn = (self._turn + 1) % len(self._sequences)

    def _take(self, position: int) -> Delta | None:
        sequence = self._sequences[position]
        log, start = sequence.log, self._read[position]
        end = len(log.token_ids)
        if start == end and log.finish is None:
            if sequence.error is None:
                return None
            error = sequence.error
            self.close()
            raise error
        stop = min(start + 1, end)
        self._read[position] = stop
        last = stop == end and log.finish is not None and (start == end or not log.finish_alone)
        if last:
            self._read[position] += log.finish_alone
            self._end([position])
        return Delta(
            position,
            log.token_ids[start:stop],
            log.logprobs[start:stop],
            log.finish if last else None,
            log.stop_reason if last else None,
        )
