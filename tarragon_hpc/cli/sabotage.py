"""`tarragon generate --chaos kill:ew1,kill:aw0`: faults in the middle of a batch."""

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
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.config import Config

_LASTS_S = 2.0
_PATIENCE_S = 15.0
_POLL_S = 0.05


class Sabotage:
    """Faults of workers, (fault, worker): one for every eighth of the answers that is there, each
    once the one before is overcome.
    """

    def __init__(self, faults: Sequence[tuple[str, str]], requests: int) -> None:
        self.faults = list(faults)
        self._eighth = max(1, requests // 8)
        self._done = 0
        self._news = asyncio.Event()

    def progress(self, done: int) -> None:
        """So many answers are there."""
        self._done = done
        self._news.set()

    async def run(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Take aim, wait for the moment, strike, and see it through until there is nothing more to
        be expected of the failure, or not within reason. Raises UserError, ClusterError.
        """
        async with head_of(run_dir) as head:
            chaos = Chaos(run_dir, head, say)
            for number, (fault, worker) in enumerate(self.faults, 1):
                async with chaos.aim(worker) as victim:
                    await self._answers(number * self._eighth)
                    lasts_s = None if fault == KILL else _LASTS_S
                    await chaos.strike(victim, fault, lasts_s=lasts_s)
                await _overcome(run_dir)

    async def _answers(self, wanted: int) -> None:
        while self._done < wanted:
            self._news.clear()
            await self._news.wait()


async def _overcome(run_dir: Path) -> None:
    """Wait for the end of the last failure's story, within reason."""
    tail = StoryTail(run_dir / TIMELINE)
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        story = tail.latest()
        if story is None or story.settled:
            return
        await asyncio.sleep(_POLL_S)


def read_sabotage(text: str, config: Config) -> list[tuple[str, str]]:
    """(fault, worker) of each of `kill:ew1,kill:aw0`. Raises UserError if one cannot be in such a
    run.
    """
    return [_read_fault(part.strip(), config) for part in text.split(",")]


def _read_fault(text: str, config: Config) -> tuple[str, str]:
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
