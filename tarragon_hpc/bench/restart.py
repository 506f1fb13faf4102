"""The coarse restart: what a failure costs where one death ends everything (paper §2.2.2).

The head and all workers are killed, the same service is started anew, and every client sends its
request again at once. The best case of it: nobody has to notice first.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tarragon_hpc.bench.arrivals import Stream, restart_gaps
from tarragon_hpc.bench.load import Load
from tarragon_hpc.bench.service import serving
from tarragon_hpc.cluster.faults import KILL, Target, Victim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tarragon_hpc.bench.load import Prompt
    from tarragon_hpc.bench.service import Service

_POLL_S = 0.002
_SOME = 32


@dataclass(frozen=True, slots=True)
class Restart:
    """before, after: the streams that were cut off and those that took their place.

    killed, ready: monotonic. gaps: what each client waited for its next token, in seconds.
    """

    before: list[Stream]
    after: list[Stream]
    killed: float
    ready: float
    gaps: list[float]


def coarse_restart(
    service: Service,
    config: dict[str, Any],
    directory: Path,
    prompts: Sequence[Prompt],
) -> Restart:
    """Kill a service in the middle of these streams, start it anew under `directory`, redo."""
    wanted = range(len(prompts))
    before = Load(service.endpoint, prompts, len(prompts))
    killed = asyncio.run(_kill_midway(service, before, wanted))
    with serving(config, directory) as again:
        ready = time.monotonic()
        after = Load(again.endpoint, prompts, len(prompts))
        asyncio.run(after.once(wanted))
    by_prompt = {stream.prompt: stream for stream in after.all}
    gaps = restart_gaps(before.all, by_prompt)
    return Restart(before.all, after.all, killed, ready, gaps)


async def _kill_midway(service: Service, load: Load, wanted: Sequence[int]) -> float:
    """Kill everything once all streams have some tokens; returns when that was."""
    pids = [service.process.pid, *(w["pid"] for w in service.status()["workers"] if w["pid"])]
    running = asyncio.create_task(load.once(wanted))
    while not running.done() and not _under_way(load.all, len(wanted)):
        await asyncio.sleep(_POLL_S)
    killed = time.monotonic()
    for pid in pids:
        try:
            with Victim(Target("", 0, pid)) as victim:
                victim.signal(KILL)
        except ProcessLookupError:
            continue  # the workers die with their head
    await running
    return killed


def _under_way(streams: Sequence[Stream], count: int) -> bool:
    return len(streams) == count and all(len(s.tokens) >= _SOME for s in streams)
