"""Where what is kept for clients is found again: by whose it is, and what they call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from tarragon_hpc.gateway.ongoing import Ongoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T", bound=Ongoing)


class Shelf(Generic[T]):
    """At most `limit` things, unless more than that are still running.

    Where one more is put, the oldest of those that have ended is forgotten before its time. Those
    that run are never more than the sequences that may be open. dropped: told of each that cannot
    be found any more.
    """

    def __init__(self, limit: int, dropped: Callable[[T], None]) -> None:
        self._limit = limit
        self._dropped = dropped
        self._kept: dict[T, list[tuple[bytes, str]]] = {}
        self._named: dict[tuple[bytes, str], T] = {}

    def __repr__(self) -> str:
        return f"Shelf({len(self._kept)} of {self._limit})"

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._kept))

    def put(self, thing: T, holder: bytes, names: Sequence[str]) -> None:
        """names: what its holder may call it; of two with one name the newer one counts."""
        if len(self._kept) >= self._limit:
            ended = next((other for other in self._kept if other.ended), None)
            if ended is not None:
                self.drop(ended)
        keys = [(holder, name) for name in names]
        self._kept[thing] = keys
        self._named |= dict.fromkeys(keys, thing)

    def find(self, holder: bytes, name: str) -> T | None:
        """What this holder calls so. Whether somebody else has one of that name must not show."""
        return self._named.get((holder, name))

    def drop(self, thing: T) -> None:
        """It is found no more. Safe to call twice."""
        if thing not in self._kept:
            return
        for key in self._kept.pop(thing):
            if self._named.get(key) is thing:
                del self._named[key]
        self._dropped(thing)
