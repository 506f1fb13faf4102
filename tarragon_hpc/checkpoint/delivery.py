"""What a courier does each time it wakes: take answers, ask, and post rows while the gate is open.

looks and fetches    at once, before everything else, whatever the gate says
rows                 in order, store by store, while no dispatch to the experts is in flight;
                     but a round of them is held back for 5 ms at most
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.checkpoint.asks import Hello
from tarragon_hpc.checkpoint.batch import bytes_per_row
from tarragon_hpc.checkpoint.fetching import Fetching, FetchResult
from tarragon_hpc.checkpoint.line import Line
from tarragon_hpc.checkpoint.looking import Looking, LookResult
from tarragon_hpc.checkpoint.pieces import Store
from tarragon_hpc.checkpoint.puts import RowParcel
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire.kv_sums import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tarragon_hpc.checkpoint.batch import Batch
    from tarragon_hpc.checkpoint.dialing import Dialer
    from tarragon_hpc.checkpoint.fetching import Sink
    from tarragon_hpc.checkpoint.gate import Gate
    from tarragon_hpc.checkpoint.row_layout import RowLayout
    from tarragon_hpc.checkpoint.traffic import Traffic
    from tarragon_hpc.transport.base import ClientChannel
    from tarragon_hpc.wire.common import Peer
    from tarragon_hpc.wire.kv import Run

_GATE_S = 0.005  # how long closed gates may hold rows back
_FETCH_S = 0.5  # how long a store may say nothing during a fetch
# With answers to come that nobody waits for, and without.
_LAZY_S = 0.05
_IDLE_S = 0.25

log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """A store has committed these runs, but for those whose keys it has dropped."""

    store: Store
    runs: list[Run]
    dropped: frozenset[int]


class Rest(NamedTuple):
    """How to wait: on the doorbell or (stores need not wake us) for orders only; until when."""

    on_bell: bool
    until: float


class Delivery:
    """All methods are for the courier's thread.

    lines: by store, those that serve; replaced, never changed, so that any thread may read it
    news: what stores have answered, for the engine thread to take
    """

    def __init__(
        self, layout: RowLayout, dialer: Dialer, gate: Gate, traffic: Traffic, *, checksums: bool
    ) -> None:
        self.lines: dict[Store, Line] = {}
        self.news: deque[Answered] = deque()
        self._layout = layout
        self._dialer = dialer
        self._gate = gate
        self._traffic = traffic
        self._checksums = checksums
        self._all: dict[Incarnation, Line] = {}  # also those that have not agreed to serve yet
        self._links = 0
        self._looks: list[Looking] = []
        self._fetches: list[Fetching] = []
        self._shut_since: float | None = None

    # Orders.

    def want(self, peers: Iterable[Peer]) -> None:
        """These stores serve now."""
        self._dialer.want(peers)
        for who in [w for w in self._all if not self._dialer.wanted(w)]:
            self._end(who, "it does not serve any more")

    def dialed(self, who: Incarnation, result: ClientChannel | str, now: float) -> None:
        """A connection has been made, or not."""
        if not self._dialer.came(who, result, now) or isinstance(result, str):
            return
        self._links += 1
        line = Line(Store(*who, self._links), result, self._traffic, now)
        self._all[who] = line
        line.urgent.append(Hello(self._layout, partial(self._greeted, line)))

    def deliver(self, batch: Batch) -> None:
        """A batch was committed: seal it and put it in the queues of its stores."""
        shares = [(self.lines[s], share) for s, share in batch.shares.items() if s in self.lines]
        batch.open_shares = len(shares)
        if not shares:
            batch.release()  # those stores have been lost meanwhile
            return
        seal(
            batch.payload, 0, self._layout.row_bytes, batch.keys, batch.positions, batch.gone,
            batch.sums, check=self._checksums,
        )  # fmt: skip
        for line, share in shares:
            capacity = line.channel.geometry.request_bytes
            posted = partial(self._posted, line, batch, share.rows)
            answered = partial(self._answered, line.store)
            line.queue.append(RowParcel(batch, share, capacity, answered, posted))

    def free(self, key: int, attempt: int) -> None:
        """Tell all stores that they may forget a request."""
        for line in self.lines.values():
            line.free(key, attempt)

    def look(
        self,
        key: int,
        attempt: int,
        done: Callable[[LookResult], None],
        timeout_s: float,
        now: float,
    ) -> None:
        """Ask the stores for a request."""
        self._looks.append(Looking(key, attempt, done, now, timeout_s))

    def fetch(
        self,
        store: Store,
        run: Run,
        sink: Sink,
        done: Callable[[FetchResult], None],
        now: float,
    ) -> None:
        """Get rows from a store."""
        line = self.lines.get(store)
        if line is None:
            done(FetchResult(False, "the store is gone", 0, 0.0))
            return
        self._fetches.append(Fetching(line, self._layout, run, sink, done, self._traffic, now))

    def close(self, now: float) -> None:
        """Give everything up."""
        self._dialer.close()
        for who in list(self._all):
            self._end(who, "closing")
        for look in self._looks:
            look.end("closing")
        for fetch in self._fetches:
            fetch.end("closing", now)

    # The round.

    def serve(self, now: float) -> Rest:
        """Do all that can be done now."""
        for who, line in list(self._all.items()):
            line.collect(now)
            if (reason := line.channel.lost) is not None:
                log.info("%s lost: %s", line.store, reason)
                self._dialer.lost(who, now)
                self._end(who, reason)
        until = self._dialer.dial(self._all.keys(), now)
        if self._looks or self._fetches:
            until = min(until, self._jobs(now))
        blocked = False
        for line in self._all.values():
            blocked |= not line.post_urgent()
        no_slot, gate_at = self._post_rows(now)
        blocked |= no_slot
        lines = self._all.values()
        on_bell = blocked or any(line.eager() for line in lines)
        nap = _LAZY_S if any(line.busy() for line in lines) else _IDLE_S
        return Rest(on_bell, min(until, gate_at, now + nap))

    def _jobs(self, now: float) -> float:
        """Look after looks and fetches; returns when to do so again."""
        greeting = self._dialer.connecting() or any(not x.ready for x in self._all.values())
        for look in self._looks:
            look.look(self.lines.values(), now, connecting=greeting)
        for fetch in self._fetches:
            fetch.look(now, _FETCH_S)
        self._looks = [look for look in self._looks if not look.over]
        self._fetches = [fetch for fetch in self._fetches if not fetch.over]
        moments = [look.deadline() for look in self._looks]
        moments += [fetch.deadline(_FETCH_S) for fetch in self._fetches]
        return min(moments, default=float("inf"))

    def _post_rows(self, now: float) -> tuple[bool, float]:
        """Post what is queued; returns whether slots are missing, and when to ignore the gate."""
        forced = self._shut_since is not None and now - self._shut_since >= _GATE_S
        blocked = False
        for line in self.lines.values():
            while line.queue:
                if not forced and self._gate.shut():
                    if self._shut_since is None:
                        self._shut_since = now
                    return blocked, self._shut_since + _GATE_S
                if not line.post_one():
                    blocked = True
                    break
        self._shut_since = None
        self._gate.waiting = False
        return blocked, float("inf")

    # What comes of it.

    def _greeted(self, line: Line, why_not: str | None) -> None:
        if why_not is None:
            line.ready = True
            self.lines = {**self.lines, line.store: line}
            return
        log.error("%s cannot be used: %s", line.store, why_not)
        self._dialer.refused(Incarnation(line.store.worker, line.store.incarnation))
        line.channel.close()

    def _answered(
        self, store: Store, runs: list[Run], dropped: frozenset[int], committed: bool
    ) -> None:
        if committed:
            self.news.append(Answered(store, runs, dropped))
        elif dropped:
            self.news.append(Answered(store, [r for r in runs if r.key in dropped], dropped))

    def _posted(self, line: Line, batch: Batch, rows: int) -> None:
        line.taken += rows * bytes_per_row(self._layout)
        batch.open_shares -= 1
        if not batch.open_shares:
            batch.release()

    def _end(self, who: Incarnation, reason: str) -> None:
        line = self._all.pop(who)
        self.lines = {s: other for s, other in self.lines.items() if other is not line}
        line.end(reason)
