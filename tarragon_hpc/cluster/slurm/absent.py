"""Workers of an earlier head that Slurm does not know any more need not be waited for.

A step that is not listed is gone, or its node's Slurm is: should its process live for all that, it
finds its place taken. One that is listed may be dead as well; for those there is the lease.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.commands import SlurmError
from tarragon_hpc.cluster.slurm.running import list_steps, number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tarragon_hpc.cluster.inheritance import Place
    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.orchestrator.state import State

# Workers that live come within a second or two.
_FIRST_S = 3.0
_NEXT_S = 10.0

log = logging.getLogger(__name__)


def missing(places: Sequence[Place], listed: Mapping[str, str]) -> list[Incarnation]:
    """Whose steps are not listed (names by ids); of all places, those of one job. Pure."""
    numbers = {number_of(step) for step in listed}
    names = set(listed.values())
    return [
        place.who
        for place in places
        if (number_of(place.step) not in numbers if place.step else str(place.who) not in names)
    ]


async def look_for(
    places: Sequence[Place],
    own_job: str,
    state: Callable[[], State],
    gone: Callable[[Incarnation, str], None],
    allocated: Callable[[str], bool],
) -> None:
    """Ask Slurm for the steps of the workers that are awaited, until none is. allocated: whether
    a node still belongs to this head's job.
    """
    pause = _FIRST_S
    while True:
        await asyncio.sleep(pause)
        pause = _NEXT_S
        awaited = {w.worker: w.incarnation for w in state().workers.values() if w.awaited}
        left = [p for p in places if awaited.get(p.who.worker) == p.who.number and not p.job]
        if not left:
            return
        for place in left:
            if place.step.partition(".")[0] == own_job and place.node and not allocated(place.node):
                gone(place.who, f"Slurm has taken its node {place.node} out of job {own_job}")
        by_job: dict[str, list[Place]] = {}
        for place in left:
            by_job.setdefault(place.step.partition(".")[0] or own_job, []).append(place)
        by_job.pop("", None)
        for job, of_job in by_job.items():
            try:
                listed = await list_steps(job)
            except SlurmError as error:
                if not error.unknown_job:
                    log.warning("the steps of job %s: %s", job, error)
                    continue
                listed = {}
            for who in missing(of_job, listed):
                gone(who, f"job {job} has no step of it any more")
