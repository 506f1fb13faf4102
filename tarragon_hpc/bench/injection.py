"""Faults at seeded random moments, one after the other, each when the service is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.fault_plan import draw_fault
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.errors import ClusterError, UserError
from tarragon_hpc.observe.story_tail import StoryTail
from tarragon_hpc.observe.story_words import in_words

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.client import Head
    from tarragon_hpc.cluster.faults import Target
    from tarragon_hpc.observe.story import Story

_POLL_S = 0.05
_PAUSE_S = (0.5, 2.5)
_OVERLAP_S = (0.0, 0.6)


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault and what became of it. `at`, `over_at`: monotonic; over: the service was whole again.

    capacity_s: until the capacity was restored, None if none was missed. story: as in `status`.
    """

    fault: str
    worker: str
    at: float
    over_at: float
    capacity_s: float | None
    story: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Injected:
    """The faults of a measurement; `problem`: why there are fewer than wanted."""

    all: list[Injection] = field(default_factory=list)
    problem: str | None = None


def is_whole(status: Mapping[str, Any]) -> bool:
    """Whether a run and all of its workers serve."""
    return status["state"] == "serving" and all(
        worker["state"] == "serving" for worker in status["workers"]
    )


def capacity_seconds(story: Story) -> float | None:
    """From the fault until there was as much capacity as before; None if none was missed."""
    end = story.at.get("restored", story.at.get("back"))
    return None if end is None or story.injected is None else end - story.injected


async def inject(
    run_dir: Path,
    *,
    role: str,
    faults: Sequence[str],
    count: int,
    rng: random.Random,
    seed: int,
    say: Callable[[str], None],
    overlap: float = 0.0,
    patience_s: float = 60.0,
) -> Injected:
    """So many faults, each of a random worker of the role that serves.

    overlap: the share of faults that the next one does not wait for: it strikes another worker (or
    the successor) during the failover, or while the successor joins.

    Ends early if the service does not get whole within `patience_s` after one, or is gone.
    """
    injections: list[Injection] = []
    async with head_of(run_dir) as head:
        chaos = Chaos(run_dir, head, lambda _: None, seed=seed)
        tail = StoryTail(run_dir / TIMELINE)
        while len(injections) < count:
            await asyncio.sleep(rng.uniform(*_PAUSE_S))
            together = 2 if rng.random() < overlap and len(injections) + 2 <= count else 1
            struck: list[tuple[str, str]] = []
            try:
                async with contextlib.AsyncExitStack() as held:
                    for more in range(together):
                        await asyncio.sleep(rng.uniform(*_OVERLAP_S) if more else 0.0)
                        planned = draw_fault(rng, 0.0, faults)
                        target = planned.choose(await _somebody(chaos, role, patience_s))
                        victim = await held.enter_async_context(chaos.aim(target.worker))
                        await chaos.strike(victim, planned.fault, lasts_s=planned.lasts_s)
                        struck.append((planned.fault, str(target)))
                    story = await _recovery(head, tail, patience_s)
            except (ClusterError, UserError) as error:
                return Injected(injections, str(error))
            # Of two that overlap the later one's story tells when all was well again.
            injections += [_injection(fault, who, story) for fault, who in struck]
            say(f"{len(injections)} of {count}: {in_words(injections[-1].story)}")
    return Injected(injections)


async def _somebody(chaos: Chaos, role: str, patience_s: float) -> list[Target]:
    """The workers of a role that serve; waits until there is one."""
    async with asyncio.timeout(patience_s):
        while not (found := await chaos.serving([role])):
            await asyncio.sleep(_POLL_S)
    return found


def _injection(fault: str, target: str, story: Story) -> Injection:
    now = time.monotonic()
    at = story.injected if story.injected is not None else now
    return Injection(fault, target, at, now, capacity_seconds(story), story.describe())


async def _recovery(head: Head, tail: StoryTail, patience_s: float) -> Story:
    """The story of the fault that was just inflicted, once the service is whole again."""
    end = time.monotonic() + patience_s
    while True:
        story = tail.latest()
        if story is not None and story.settled and is_whole(await head.status()):
            return story
        if time.monotonic() > end:
            what = f"{story.worker}.{story.incarnation}" if story else "a fault"
            raise ClusterError(f"the service was not whole {patience_s:g} s after {what} was hit")
        await asyncio.sleep(_POLL_S)
