"""Which positions of which request each checkpoint store has been given, and what is next.

Pure, for the engine thread. `plan` is asked once per engine step. Normally a store gets the rows
that the step makes, whatever they are. What it missed before (its queue was full, or the store is
new) is its *backlog*, copied from the paged cache, which holds it as long as the request lives:

- only of requests in the step, whose rows are certain to be in the cache;
- within `catch_up` bytes per second, new rows of such a request included;
- the shortest backlog first, the oldest request among equals: this protects the most requests
  soonest, and those that are short of a few rows do not fall behind.

The pieces of a request that one store gets follow each other without a hole or an overlap, until
it is said that one was `skipped`. A request keeps its stores while they last; places that are free
are filled by rendezvous hashing. A store that refuses a request (it was evicted there, say) is not
offered it again by this attempt: they would go round in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.budget import Budget
from tarragon_hpc.checkpoint.pieces import Piece, Store, ranked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tarragon_hpc.wire.kv import Run

# A request counts as protected if no more than so many tokens would have to be computed anew.
_CURRENT = 16


class _Place:
    """A request at a store: positions that it was given, and that it has said to be committed."""

    __slots__ = ("base", "committed", "sent")

    def __init__(self, held: int) -> None:
        self.base = self.sent = self.committed = held


class _Request:
    """reached: positions in the cache as of the last step; number: in the order of opening."""

    __slots__ = ("attempt", "number", "places", "reached", "refused")

    def __init__(self, attempt: int, number: int) -> None:
        self.attempt = attempt
        self.number = number
        self.reached = 0
        self.places: dict[Store, _Place] = {}
        self.refused: set[Store] = set()

    def lag(self) -> int:
        """Tokens that are not committed anywhere."""
        committed = max((p.committed for p in self.places.values()), default=0)
        return max(0, self.reached - committed)


class Protection:
    """See the module's text.

    replicas: stores per request; catch_up: bytes of backlog per second; token_bytes: bytes of one
    token's rows in all layers
    """

    def __init__(self, replicas: int, catch_up: int, token_bytes: int) -> None:
        self._replicas = replicas
        self._token_bytes = token_bytes
        self._budget = Budget(catch_up, token_bytes)
        self._stores: tuple[Store, ...] = ()
        self._requests: dict[int, _Request] = {}
        self._opened = 0
        self._skipped_rows = 0

    def __repr__(self) -> str:
        return f"Protection({len(self._requests)} requests, {len(self._stores)} stores)"

    def open(self, key: int, attempt: int, held: Mapping[Store, int] | None = None) -> None:
        """A request has come, or is begun anew.

        held: how many positions, from the first, the stores hold of what older attempts wrote, and
        this attempt does not write again; rows from there on are forgotten there.
        """
        self._opened += 1
        request = self._requests[key] = _Request(attempt, self._opened)
        held = held or {}
        request.reached = max(held.values(), default=0)
        live = {s: n for s, n in held.items() if s in self._stores and n > 0}
        for store in sorted(live, key=lambda s: -live[s])[: self._replicas]:
            request.places[store] = _Place(live[store])
        self._fill(key, request)

    def close(self, key: int) -> None:
        """The request has ended, or went to another AW. Unknown ones are ignored."""
        self._requests.pop(key, None)

    def set_stores(self, stores: Sequence[Store]) -> list[int]:
        """These serve now; returns the keys of the requests whose stores have changed.

        A new store knows nothing of any request: it gets everything, from position 0.
        """
        if tuple(stores) == self._stores:
            return []
        self._stores = tuple(stores)
        changed = []
        for key, request in self._requests.items():
            before = list(request.places)
            request.places = {s: p for s, p in request.places.items() if s in self._stores}
            request.refused.intersection_update(self._stores)
            self._fill(key, request)
            if list(request.places) != before:
                changed.append(key)
        return changed

    def plan(
        self,
        step: Iterable[tuple[int, int]],
        now: float,
        room: Mapping[Store, int] | None = None,
    ) -> list[Piece]:
        """What to copy once this step has computed its rows; it counts as sent from now on.

        step: (key, how many positions of it are in the cache then), one per request
        room: how many rows the queue of each store has room for; None: plenty. Rows that find none
        become backlog; short pieces go first, so that a long prompt does not keep others out.
        """
        fresh: list[tuple[int, int, int, Store, _Place, int, int]] = []
        behind: list[tuple[int, int, int, Store, _Place, int, int]] = []
        for key, end in step:
            request = self._requests[key]
            before, request.reached = request.reached, end
            for store, place in request.places.items():
                missing = end - place.sent
                if missing > 0:
                    to = fresh if place.sent >= before else behind
                    to.append(
                        (missing, request.number, len(to), store, place, key, request.attempt)
                    )
        left = None if room is None else dict(room)
        pieces: list[Piece] = []
        if left is not None and len(fresh) > 1:
            fresh.sort()
        for missing, _, _, store, place, key, attempt in fresh:
            length = _take(left, store, missing)
            self._skipped_rows += missing - length
            if length:
                pieces.append(_hand_over(store, place, key, attempt, length))
        if behind:
            behind.sort()
            affordable = int(self._budget.left(now) // self._token_bytes)
            for missing, _, _, store, place, key, attempt in behind:
                length = _take(left, store, min(missing, affordable))
                if length > 0:
                    affordable -= length
                    self._budget.spend(length * self._token_bytes)
                    pieces.append(_hand_over(store, place, key, attempt, length))
        return pieces

    def skipped(self, pieces: Iterable[Piece]) -> None:
        """These pieces of the last plan were not copied after all; they become backlog."""
        for piece in pieces:
            place = self._place(piece.store, piece.key, piece.attempt)
            if place is not None:
                place.sent = min(place.sent, piece.start)
            self._skipped_rows += piece.length

    def answered(self, store: Store, runs: Iterable[Run], dropped: Collection[int]) -> None:
        """A store has committed these runs, but for those whose keys it has dropped."""
        for run in runs:
            if run.key in dropped:
                self.refused(store, run.key, run.attempt)
            else:
                self.committed(store, run.key, run.attempt, run.start + run.length)

    def committed(self, store: Store, key: int, attempt: int, upto: int) -> None:
        """A store says that everything below position `upto` is committed."""
        place = self._place(store, key, attempt)
        if place is not None:
            place.committed = max(place.committed, upto)

    def refused(self, store: Store, key: int, attempt: int) -> None:
        """A store dropped what it got of a request: it is not protected there any more."""
        if self._place(store, key, attempt) is not None:
            request = self._requests[key]
            del request.places[store]
            request.refused.add(store)

    def stats(self) -> dict[str, float]:
        """Requests, those a store could restore nearly whole, tokens that none could, and rows that
        found the queue full when it was their turn.
        """
        lags = [r.lag() for r in self._requests.values()]
        return {
            "kv_requests": len(lags),
            "kv_protected": sum(
                r.lag() <= _CURRENT and any(p.committed for p in r.places.values())
                for r in self._requests.values()
            ),
            "kv_lag_tokens": sum(lags),
            "kv_skipped_rows": self._skipped_rows,
        }

    def _place(self, store: Store, key: int, attempt: int) -> _Place | None:
        request = self._requests.get(key)
        if request is None or request.attempt != attempt:
            return None
        return request.places.get(store)

    def _fill(self, key: int, request: _Request) -> None:
        missing = self._replicas - len(request.places)
        if missing <= 0 or not self._stores:
            return
        for store in ranked(key, self._stores):
            if missing and store not in request.places and store not in request.refused:
                request.places[store] = _Place(0)
                missing -= 1


def _take(left: dict[Store, int] | None, store: Store, wanted: int) -> int:
    """As much of a store's room as is wanted and there."""
    if left is None:
        return wanted
    taken = max(0, min(wanted, left.get(store, 0)))
    if taken:
        left[store] -= taken
    return taken


def _hand_over(store: Store, place: _Place, key: int, attempt: int, length: int) -> Piece:
    piece = Piece(store, key, attempt, place.base, place.sent, length)
    place.sent += length
    return piece
