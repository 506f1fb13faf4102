"""Which nodes an allocation still has, as the queue says: Slurm takes out those that failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.allocation import Allocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.cluster.slurm.queue import JobView
    from tarragon_hpc.cluster.slurm.step_launcher import StepLauncher
    from tarragon_hpc.cluster.slurm.watch import QueueWatch


def now_has(before: Allocation, view: JobView | None) -> Allocation:
    """The allocation after a look; as before, unless its job runs and has nodes."""
    if view is None or view.waits or view.over or not view.nodes:
        return before
    missing = len(before.nodes) - len(view.parts)
    return Allocation(before.job, view.parts + ((),) * missing)


def lost(before: Allocation, after: Allocation) -> list[str]:
    """Nodes that it has no more."""
    return [node for part in before.nodes for node in part if not after.has(node)]


async def follow(
    watch: QueueWatch, steps: StepLauncher, distrust: Callable[[str, str], None]
) -> None:
    """Keep what a launcher knows of its allocation up to date, for ever."""
    while True:
        await asyncio.sleep(watch.poll_s)
        job = steps.allocation.job
        look = await watch.look([job])
        after = now_has(steps.allocation, look.views.get(job))
        for node in lost(steps.allocation, after):
            distrust(node, f"Slurm has taken it out of job {job}")
            steps.lose(node)
        steps.update(after)
