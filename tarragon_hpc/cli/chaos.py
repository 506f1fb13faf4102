"""`tarragon chaos`: faults on purpose, one or many, in a run of this host."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.cli.runs import locate
from tarragon_hpc.cluster.chaos import Chaos
from tarragon_hpc.cluster.client import head_of
from tarragon_hpc.cluster.fault_plan import plan_faults
from tarragon_hpc.cluster.faults import FAULTS, KILL, SLOW, STOP
from tarragon_hpc.errors import UserError
from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from pathlib import Path
    from typing import Any

_INTERRUPTED = 130
_AT_RANDOM = (KILL, STOP, SLOW)
_ROLES = tuple(Role)


class Aim(NamedTuple):
    """What the arguments say; without a fault: many, at random."""

    run: str | None
    fault: str | None
    worker: str | None


def read_aim(words: Sequence[str], *, at_random: bool) -> Aim:
    """`[RUN] FAULT WORKER`, or at random `[RUN]`. Raises UserError."""
    if at_random:
        if len(words) > 1:
            raise UserError(f"{' '.join(words)}: with --mtbf only RUN may be given")
        return Aim(words[0] if words else None, None, None)
    if len(words) not in (2, 3):
        raise UserError("expected [RUN] FAULT WORKER, such as `kill ew1`, or --mtbf SECONDS")
    *run, fault, worker = words
    if fault not in FAULTS:
        raise UserError(f"FAULT: {fault!r} is not one of {', '.join(FAULTS)}")
    return Aim(run[0] if run else None, fault, worker)


def read_list(option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """The parts of `a,b`. Raises UserError if one of them is not allowed."""
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        if part not in allowed:
            raise UserError(f"{option}: {part!r} is not one of {', '.join(allowed)}")
    return parts


def chaos(
    words: Sequence[str],
    root: Path | None,
    *,
    mtbf_s: float | None,
    seed: int,
    faults: str,
    roles: str,
    duration_s: float | None,
    factor: float,
    for_s: float,
) -> int:
    """Inflict what was asked for; returns the exit status."""
    aim = read_aim(words, at_random=mtbf_s is not None)
    kinds = read_list("--faults", faults, _AT_RANDOM)
    hit = read_list("--roles", roles, _ROLES)
    directory = locate(aim.run, root)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:8.3f} s  {line}", flush=True)

    async def once(fault: str, worker: str) -> None:
        async with head_of(directory) as head:
            inflictor = Chaos(directory, head, say)
            async with inflictor.aim(worker) as victim:
                lasts_s = for_s if fault == SLOW else None
                await inflictor.strike(victim, fault, factor=factor, lasts_s=lasts_s)

    async def many(mtbf: float) -> None:
        plan = plan_faults(seed, mtbf, kinds, duration_s)
        async with head_of(directory) as head:
            inflictor = Chaos(directory, head, say, seed=seed)
            say(f"{await inflictor.rampage(plan, hit, factor)} faults")

    if mtbf_s is not None:
        return _until_interrupted(many(mtbf_s))
    assert aim.fault is not None
    assert aim.worker is not None
    return _until_interrupted(once(aim.fault, aim.worker))


def _until_interrupted(work: Coroutine[Any, Any, None]) -> int:
    """Do it; a signal cancels it, so that nothing stays stopped that was not to."""

    async def run() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
            return 0
        return _INTERRUPTED

    return asyncio.run(run())
