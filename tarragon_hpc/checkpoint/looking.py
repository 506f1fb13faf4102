"""Who holds what of a request that another AW has begun: the stores are asked, all at once.

To ask is to take over: from then on the store takes rows of this attempt only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tarragon_hpc.checkpoint.asks import write_frame
from tarragon_hpc.checkpoint.pieces import ranked
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from tarragon_hpc.checkpoint.line import Line
    from tarragon_hpc.checkpoint.pieces import Store

# After one store has found the request, the others are waited for only as long: it may do without.
_GRACE_S = 0.03


class LookResult(NamedTuple):
    """What the stores hold of a request.

    holders: committed positions by store, the best first; tokens: the token ids, uint32, of those
    of the best store, and the others hold a prefix of them; reason: why there is no holder
    """

    key: int
    attempt: int
    holders: dict[Store, int]
    tokens: NDArray[np.uint32]
    reason: str


class Looking:
    """One request. `done` is called exactly once, by `look`, with the result."""

    def __init__(
        self,
        key: int,
        attempt: int,
        done: Callable[[LookResult], None],
        now: float,
        timeout_s: float,
    ) -> None:
        self.over = False
        self._key = key
        self._attempt = attempt
        self._done = done
        self._deadline = now + timeout_s
        self._found_at: float | None = None
        self._asked: set[Store] = set()
        self._owing: set[Store] = set()
        self._tokens: dict[Store, NDArray[np.uint32]] = {}
        self._reasons: dict[Store, str] = {}

    def look(self, lines: Collection[Line], now: float, *, connecting: bool) -> None:
        """Ask the stores that have not been asked, and end it if there is nothing to wait for.

        lines: to the stores that serve; connecting: whether there may soon be another
        """
        for line in lines:
            if line.store not in self._asked:
                self._asked.add(line.store)
                self._owing.add(line.store)
                line.urgent.append(_Look(self, line.store))
        if self._tokens and self._found_at is None:
            self._found_at = now
        if now >= self.deadline() or not (self._owing or connecting):
            self.end("no store" if not self._asked else "no answer")

    def deadline(self) -> float:
        """When to look again, at the latest."""
        grace = self._deadline if self._found_at is None else self._found_at + _GRACE_S
        return min(self._deadline, grace)

    def end(self, reason: str) -> None:
        """Tell the result; reason: why nobody holds it, should no store have said better."""
        if self.over:
            return
        self.over = True
        order = ranked(self._key, self._tokens)
        order.sort(key=lambda store: -len(self._tokens[store]))
        best = self._tokens[order[0]] if order else np.zeros(0, np.uint32)
        holders = {}
        for store in order:
            mine = self._tokens[store]
            if np.array_equal(mine, best[: len(mine)]):
                holders[store] = len(mine)
        if holders:
            reason = ""
        elif self._reasons:
            reason = "; ".join(f"{s}: {why}" for s, why in self._reasons.items())
        self._done(LookResult(self._key, self._attempt, holders, best, reason))

    def run(self) -> kv.Run:
        """What is asked for."""
        return kv.Run(self._key, self._attempt, 0, 0, 0)

    def heard(self, store: Store, answer: NDArray[np.uint32] | str) -> None:
        """A store has answered with token ids, or with a reason."""
        self._owing.discard(store)
        if isinstance(answer, str):
            self._reasons[store] = answer
        elif len(answer):
            self._tokens[store] = answer
        else:
            self._reasons[store] = "nothing is committed"


_WHY = {
    kv.STATUS_UNKNOWN: "unknown",
    kv.STATUS_STALE: "a newer attempt owns it",
    kv.STATUS_BAD: "refused",
}


class _Look:
    """The question to one store; see `Ask`."""

    kind = kv.LOOK
    lazy = False

    def __init__(self, job: Looking, store: Store) -> None:
        self._job = job
        self._store = store

    def void(self) -> bool:
        return self._job.over

    def write(self, slot: memoryview, sequence: int) -> int:
        return write_frame(slot, kv.LOOK, sequence, runs=[self._job.run()])

    def due(self) -> bool:
        return True

    def answered(self, header: kv.Header, reply: memoryview) -> None:
        if header.status != kv.STATUS_OK:
            self._job.heard(self._store, _WHY.get(header.status, f"status {header.status}"))
            return
        if 4 * header.rows > header.body:
            raise FrameError(f"{header.rows} token ids in {header.body} bytes")
        end = kv.HEADER_BYTES + 4 * header.rows
        tokens = np.frombuffer(reply[kv.HEADER_BYTES : end], np.uint32).copy()
        self._job.heard(self._store, tokens)

    def lost(self, reason: str) -> None:
        self._job.heard(self._store, reason)
