"""What is made for a client that may be away: it goes on without it, and is kept for a while."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Ongoing:
    """Something that a task makes, and who reads it. `begin` is called once, by whoever made it.

    name: for the log. keep_s, gone: called when it is to be found no more: `keep_s` after its end,
    or when nobody has read for so long while it runs, and it is given up. asleep: none of that is
    counted before `wake`; the clients of an earlier head cannot come sooner.
    """

    def __init__(
        self, name: str, keep_s: float, gone: Callable[[Any], None], *, asleep: bool = False
    ) -> None:
        self.name = name
        self.ended = False
        self.cut = ""
        self._keep_s = keep_s
        self._gone = gone
        self._asleep = asleep
        self._forgetting = False
        self._news = asyncio.Event()
        self._readers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start making it."""
        self._task = asyncio.create_task(self._run(), name=f"keep {self.name}")

    def wake(self) -> None:
        """From now on its client could come."""
        self._asleep = False
        self._count()

    def suspend(self, reason: str) -> None:
        """Another head goes on with it: nothing more is made or told here but the reason."""
        self.cut = reason
        if self._task is not None:
            self._task.cancel()
        self._tell()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While somebody reads it, it goes on."""
        self._readers += 1
        self._count()
        try:
            yield
        finally:
            self._readers -= 1
            self._count()

    async def _make(self) -> None:
        """Make it. Raises nothing."""
        raise NotImplementedError

    async def _run(self) -> None:
        try:
            await self._make()
        finally:
            self.ended = True
            self._tell()
            self._count()

    def _tell(self) -> None:
        """There is something new to read."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _count(self) -> None:
        """Begin the time after which it is forgotten or given up, or stop counting it."""
        if self._asleep or self._forgetting:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forgetting = self.ended
        if self.ended or not self._readers:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keep_s, self._expire)

    def _expire(self) -> None:
        self._gone(self)
        if self._task is not None:
            self._task.cancel()
