"""Faults at seeded random moments, one after the other, each when the service is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.fault_plan import draw_fault
from tarragon_hpc.cluster.faults import KILL
from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.errors import ClusterError, UserError
from tarragon_hpc.ids import Role
from tarragon_hpc.observe.story_tail import StoryTail
from tarragon_hpc.observe.story_words import in_words

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.chaos import Wires
    from tarragon_hpc.cluster.client import Head
    from tarragon_hpc.cluster.faults import Target, Victim
    from tarragon_hpc.observe.story import Story

_POLL_S = 0.05
_PAUSE_S = (0.5, 2.5)
_OVERLAP_S = (0.0, 0.6)
_MIDWAY_S = (0.0, 0.1)
_PROTECT_S = 30.0


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault and what became of it. `at`, `over_at`: monotonic; over: the service was whole again.

    capacity_s: until the capacity was restored, None if none was missed. story: as in `status`.
    also: a worker of another role that was killed together with it. protected_s: until the KV of
    all requests was in a checkpoint store (again); None if there is none, or it never was.
    """

    fault: str
    worker: str
    at: float
    over_at: float
    capacity_s: float | None
    story: dict[str, Any]
    also: str | None = None
    protected_s: float | None = None


class _Struck(NamedTuple):
    fault: str
    worker: str
    at: float
    also: str | None


class Also(NamedTuple):
    """With this probability, a worker of this role is killed together with the one that is hit."""

    role: str
    share: float


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


def is_protected(status: Mapping[str, Any]) -> bool:
    """Whether a checkpoint store has the KV of every request, as far as the head knows."""
    kept = status["checkpoint"]
    return bool(kept["stores"] and kept["protected"] >= kept["requests"])


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
    also: Also | None = None,
    wires: Wires | None = None,
    patience_s: float = 60.0,
) -> Injected:
    """So many faults, each of a random worker of the role that serves.

    overlap: the share of faults that the next one does not wait for: it strikes another worker (or
    the successor) during the failover, or while the successor joins; of an AW, every second of them
    so soon that the requests may still be on their way. wires: for faults of the network.

    Ends early if the service does not get whole within `patience_s` after one, or is gone.
    """
    injections: list[Injection] = []
    async with head_of(run_dir) as head:
        chaos = Chaos(run_dir, head, lambda _: None, seed=seed, wires=wires)
        tail = StoryTail(run_dir / TIMELINE)
        while len(injections) < count:
            await asyncio.sleep(rng.uniform(*_PAUSE_S))
            together = 2 if rng.random() < overlap and len(injections) + 2 <= count else 1
            struck: list[_Struck] = []
            try:
                async with contextlib.AsyncExitStack() as held:
                    for more in range(together):
                        await asyncio.sleep(_overlap_s(rng, role) if more else 0.0)
                        planned = draw_fault(rng, 0.0, faults)
                        target, victim = await _take_aim(
                            held, chaos, planned.choose, role, patience_s
                        )
                        with_it = None
                        if also is not None and not more and rng.random() < also.share:
                            with_it = await _kill_one(chaos, also.role, rng, patience_s)
                        struck.append(
                            _Struck(planned.fault, str(target), time.monotonic(), with_it)
                        )
                        await chaos.strike(victim, planned.fault, lasts_s=planned.lasts_s)
                    story = await _recovery(head, tail, patience_s)
                    whole = time.monotonic()
                    protected = await _protection(head) if role != Role.EW else None
            except (ClusterError, UserError) as error:
                return Injected(injections, str(error))
            # Of two that overlap the later one's story tells when all was well again.
            injections += [_injection(s, story, whole, protected) for s in struck]
            say(f"{len(injections)} of {count}: {in_words(injections[-1].story)}")
    return Injected(injections)


async def _take_aim(
    held: contextlib.AsyncExitStack,
    chaos: Chaos,
    choose: Callable[[list[Target]], Target],
    role: str,
    patience_s: float,
) -> tuple[Target, Victim]:
    """A worker of a role, held as long as `held`; if the one that is chosen dies, another one."""
    async with asyncio.timeout(patience_s):
        while True:
            target = choose(await _somebody(chaos, role, patience_s))
            try:
                return target, await held.enter_async_context(chaos.aim(target.worker))
            except UserError:  # it is dead, which the head did not know when it was asked
                await asyncio.sleep(_POLL_S)


async def _somebody(chaos: Chaos, role: str, patience_s: float) -> list[Target]:
    """The workers of a role that serve; waits until there is one."""
    async with asyncio.timeout(patience_s):
        while not (found := await chaos.serving([role])):
            await asyncio.sleep(_POLL_S)
    return found


def _overlap_s(rng: random.Random, role: str) -> float:
    """How long after a fault the next one strikes that does not wait for its end."""
    if role == Role.AW and rng.random() < 0.5:
        return rng.uniform(*_MIDWAY_S)
    return rng.uniform(*_OVERLAP_S)


async def _kill_one(chaos: Chaos, role: str, rng: random.Random, patience_s: float) -> str:
    """Kill a worker of a role; returns which."""
    async with contextlib.AsyncExitStack() as held:
        target, victim = await _take_aim(held, chaos, rng.choice, role, patience_s)
        await chaos.strike(victim, KILL)
    return str(target)


def _injection(struck: _Struck, story: Story, whole: float, protected: float | None) -> Injection:
    return Injection(
        struck.fault,
        struck.worker,
        struck.at,
        whole,
        capacity_seconds(story),
        story.describe(),
        struck.also,
        None if protected is None else protected - struck.at,
    )


async def _protection(head: Head) -> float | None:
    """When a checkpoint store had everything; None if there is no store, or it takes too long."""
    end = time.monotonic() + _PROTECT_S
    while time.monotonic() < end:
        status = await head.status()
        if not status["checkpoint"]["wanted"]:
            return None
        if is_protected(status):
            return time.monotonic()
        await asyncio.sleep(_POLL_S)
    return None


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
