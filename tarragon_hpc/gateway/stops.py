"""Stop strings in text that comes in pieces. Pure state, no tokens, no I/O.

The result does not depend on where the text is cut: the stop string that is complete first wins;
of those that end at the same character, the one that was listed first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopMatcher:
    """Finds the first stop string, and holds back text that might be the beginning of one.

    include: the stop string stays in the text, so nothing need be held back.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.found: str | None = None
        self._stops = stops
        self._include = include
        self._reach = max(map(len, stops), default=1) - 1
        self._tail = ""
        self._held = ""

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """Add text; returns what may be given out now. After a match it is always empty.

        may_stop=False: a stop string that ends in this piece does not count (min_tokens).
        """
        if not self._stops or not piece:
            return piece
        if self.found is not None:
            return ""
        window = self._tail + piece
        match = self._first(window) if may_stop else None
        self._tail = window[-self._reach :] if self._reach else ""
        text = self._held + piece
        if match is not None:
            end, self.found = match
            keep = len(text) - (len(window) - end)
            self._held = ""
            return text[: keep if self._include else keep - len(self.found)]
        ready = len(text) - (0 if self._include else self._might_begin(window))
        self._held = text[ready:]
        return text[:ready]

    def flush(self) -> str:
        """There is no more text: what was held back is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, window: str) -> tuple[int, str] | None:
        """(end in the window, stop string) of the match that ends first but after the old tail."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = window.find(stop, max(0, len(self._tail) + 1 - len(stop)))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = start + len(stop), stop
        return best

    def _might_begin(self, window: str) -> int:
        """Length of the longest end of the window that some stop string starts with."""
        for size in range(min(self._reach, len(window)), 0, -1):
            end = window[-size:]
            if any(len(stop) > size and stop.startswith(end) for stop in self._stops):
                return size
        return 0
