"""The requests of a `PlainStore` and the pages they own; who is forgotten when memory is full.

Only the accounts are those of the native store: the rows lie in Python's own memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.checkpoint.ledger import Ledger
from tarragon_hpc.wire.kv import aligned

if TYPE_CHECKING:
    from collections.abc import Sequence


def page_bytes(row_bytes: Sequence[int], page_tokens: int) -> int:
    """Bytes of a page: token ids, sums of all layers, and rows of all layers."""
    return aligned(page_tokens * (4 + 4 * len(row_bytes) + sum(row_bytes)))


class Kept:
    """What is kept of one request.

    owner: the client that wrote or looked last; orphaned: when that one was lost
    serial: counts the requests as they come; pages: how many it owns, at least one
    rows: by layer and position, (sum, bytes)
    """

    def __init__(self, ledger: Ledger, owner: int, serial: int) -> None:
        self.ledger = ledger
        self.owner = owner
        self.serial = serial
        self.orphaned: float | None = None
        self.pages = 0
        self.rows: list[list[tuple[int, bytes]]] = [[] for _ in ledger.frontiers]


class Requests:
    """All requests by key, within `pages` pages of `page_tokens` positions.

    orphan_s: seconds after the loss of its owner until a request is forgotten
    evicted: how many requests were forgotten for want of memory
    """

    def __init__(self, pages: int, page_tokens: int, orphan_s: float) -> None:
        self.kept: dict[int, Kept] = {}
        self.used = 0
        self.evicted = 0
        self._pages = pages
        self._page_tokens = page_tokens
        self._orphan_s = orphan_s
        self._serial = 0

    def create(self, key: int, layers: int, attempt: int, owner: int) -> Kept:
        """A new request without pages; to be followed by `reserve`."""
        self._serial += 1
        kept = self.kept[key] = Kept(Ledger(layers, attempt), owner, self._serial)
        return kept

    def remove(self, key: int) -> None:
        """Forget a request and take its pages back."""
        self.used -= self.kept.pop(key).pages

    def trim(self, kept: Kept) -> None:
        """Take back what is beyond the frontiers, but for the first page."""
        for rows, frontier in zip(kept.rows, kept.ledger.frontiers, strict=True):
            del rows[frontier:]
        pages = min(kept.pages, max(1, -(-kept.ledger.extent // self._page_tokens)))
        self.used -= kept.pages - pages
        kept.pages = pages

    def reserve(self, key: int, end: int) -> bool:
        """Give a request pages for its first `end` positions.

        Others are evicted for that; False if the request itself had to go.
        """
        kept = self.kept[key]
        need = -(-end // self._page_tokens) - kept.pages
        while self._pages - self.used < need:
            victim = min(self.kept, key=lambda k: _worth(self.kept[k]))
            self.evicted += 1
            self.remove(victim)
            if victim == key:
                return False
        if need > 0:
            self.used += need
            kept.pages += need
        return True

    def orphan(self, owner: int, now: float) -> None:
        """The owner was lost: whatever is its own may be taken over for a while."""
        for kept in self.kept.values():
            if kept.owner == owner and kept.orphaned is None:
                kept.orphaned = now

    def expire(self, now: float) -> None:
        """Forget the orphans whose time is over."""
        due = [
            key
            for key, kept in self.kept.items()
            if kept.orphaned is not None and kept.orphaned + self._orphan_s < now
        ]
        for key in due:
            self.remove(key)


def _worth(kept: Kept) -> tuple[bool, float, int]:
    """The least goes first: the oldest orphan, then what is cheapest to compute anew.

    Of equals the newcomer goes, so that no two requests evict each other in turn.
    """
    if kept.orphaned is not None:
        return False, kept.orphaned, kept.serial
    return True, kept.ledger.committed, -kept.serial
