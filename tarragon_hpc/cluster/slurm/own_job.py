"""One worker's own job, as the launcher remembers it, and who hears of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tarragon_hpc.ids import Incarnation

_HURRIED_S = 15.0


class Told(Protocol):
    """Who hears of workers' jobs, in the event loop."""

    def queued(self, who: Incarnation, job: str, reason: str, expected_start: str) -> None:
        """The worker's job waits, for this reason; an empty one: it runs now."""

    def ended(self, who: Incarnation, cause: str, nodes: tuple[str, ...]) -> None:
        """Once each: the worker's job is over, or there is none; where it ran, if it did."""

    def blamed(self, node: str, why: str) -> None:
        """A node cannot be used."""

    def doubtful(self) -> set[str]:
        """Nodes that may be dead."""

    def connected(self, who: Incarnation) -> bool:
        """Whether the worker is there, by its own connection."""


@dataclass(eq=False, slots=True)
class OwnJob:
    """job: its id, empty until Slurm has it. doomed: it is to end. hurry_until: until then somebody
    waits for what becomes of it. said: what was last told of it. over: it is.
    """

    who: Incarnation
    job: str = ""
    doomed: bool = False
    hurry_until: float = 0.0
    said: tuple[str, str] | None = None
    said_at: float = 0.0
    nodes: tuple[str, ...] = ()
    gives_way: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def urgent(self) -> bool:
        """A job that hangs, as on a dead node, is no reason to ask Slurm ever and ever again."""
        return time.monotonic() < self.hurry_until

    def hurry(self) -> None:
        """Look at once, and often for a while."""
        self.hurry_until = time.monotonic() + _HURRIED_S
        self.wake.set()

    async def pause(self, seconds: float) -> bool:
        """Until then, or until somebody is in a hurry, which is true then."""
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            return False
        self.wake.clear()
        return True
