"""How long a peer's device has completed nothing of what was asked of it. Pure.

A queue pair gives up by itself after its retries; but some devices take their largest number for
"for ever", and a broken one might never say anything.
"""

from __future__ import annotations


class Silence:
    """limit_s: silence that is a loss."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: float | None = None

    def look(self, owing: bool, heard: bool, now: float) -> float | None:
        """Whether something is `owing`, and something was `heard` since the last look: for how long
        it has been silent, in seconds, if that is too long.
        """
        if not owing:
            self._since = None
        elif heard or self._since is None:
            self._since = now
        elif now - self._since >= self._limit_s:
            return now - self._since
        return None
