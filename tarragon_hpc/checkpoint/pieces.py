"""What is copied where: names that the AW's side of checkpointing has in common."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Store(NamedTuple):
    """A connection to a checkpoint store.

    link counts the AW's connections: what went into one that was lost may not have arrived, so a
    store that is connected to anew is a new store, even if it is the same process.
    """

    worker: str
    incarnation: int
    link: int

    def __str__(self) -> str:
        return f"{self.worker}.{self.incarnation}"


class Piece(NamedTuple):
    """Positions start … start+length-1 of a request, to be copied to a store.

    attempt, base: as in `wire.kv.Run`.
    """

    store: Store
    key: int
    attempt: int
    base: int
    start: int
    length: int


def ranked(key: int, stores: Iterable[Store]) -> list[Store]:
    """The stores in the order in which a request prefers them: rendezvous hashing.

    Every AW gets the same order. One store more or less changes the first choice of no other
    requests than those that it takes or had.
    """
    secret = key.to_bytes(8, "little")

    def weight(store: Store) -> bytes:
        name = f"{store.worker}.{store.incarnation}".encode()
        return hashlib.blake2b(name, key=secret, digest_size=8).digest()

    return sorted(stores, key=lambda store: (weight(store), store))
