"""`tarragon generate --chaos kill:ew1`: one fault in the middle of a batch."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.faults import CONT, FAULTS, KILL
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.errors import UserError
from tarragon_hpc.observe.story_tail import StoryTail
from tarragon_hpc.observe.story_words import duration, in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tarragon_hpc.config import Config

_LASTS_S = 2.0
_PATIENCE_S = 15.0
_POLL_S = 0.05


class Sabotage:
    """A fault of one worker, once an eighth of the answers are there."""

    def __init__(self, fault: str, worker: str, requests: int) -> None:
        self.fault = fault
        self.worker = worker
        self._after = max(1, requests // 8)
        self._time_has_come = asyncio.Event()

    def progress(self, done: int) -> None:
        """So many answers are there."""
        if done >= self._after:
            self._time_has_come.set()

    async def run(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Take aim, wait for the moment, strike, and see it through until there is nothing more to
        be expected of the failure, or not within reason. Raises UserError, ClusterError.
        """
        async with head_of(run_dir) as head:
            chaos = Chaos(run_dir, head, say)
            async with chaos.aim(self.worker) as victim:
                await self._time_has_come.wait()
                lasts_s = None if self.fault == KILL else _LASTS_S
                await chaos.strike(victim, self.fault, lasts_s=lasts_s)
        tail = StoryTail(run_dir / TIMELINE)
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            story = tail.latest()
            if story is None or story.settled:
                return
            await asyncio.sleep(_POLL_S)


def read_sabotage(text: str, config: Config) -> tuple[str, str]:
    """(fault, worker) of `kill:ew1`. Raises UserError if that cannot be in such a run."""
    fault, colon, worker = text.partition(":")
    faults = [f for f in FAULTS if f != CONT]
    workers = [f"aw{i}" for i in range(config.attention.workers)]
    workers += [f"ew{i}" for i in range(config.experts.workers)]
    workers += [f"cs{i}" for i in range(config.checkpoint.stores)]
    if not colon or fault not in faults:
        raise UserError(
            f"--chaos {text!r}: expected FAULT:WORKER with a fault of {', '.join(faults)}"
        )
    if worker not in workers:
        raise UserError(f"--chaos {text}: {worker!r} is not one of {', '.join(workers)}")
    return fault, worker


def aftermath(status: Mapping[str, Any]) -> str:
    """What the status says of failures and of the longest pause, in words."""
    lines = [in_words(story) for story in status.get("failures", ())]
    gap = duration((status.get("requests") or {}).get("longest_gap_s", 0.0))
    return "\n".join([*lines, f"longest gap between two tokens of an answer: {gap}"])
