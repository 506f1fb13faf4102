"""What a head finds in the run directory of a run that had another head before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.rendezvous import WORKERS, run_nonce, run_secret
from tarragon_hpc.cluster.roster import Roster, claims, look
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator.apply import apply, replay
from tarragon_hpc.orchestrator.events import HeadChanged
from tarragon_hpc.orchestrator.journal import read_chronicle
from tarragon_hpc.orchestrator.state import RunPhase, State
from tarragon_hpc.orchestrator.takeover import leftovers

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.orchestrator.state import Worker


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs that an earlier head has started. step: of Slurm, `job.step`; node: as
    Slurm calls it; job: if it is this worker's alone. What is empty is unknown.
    """

    who: Incarnation
    step: str
    node: str
    job: str


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A run as it is taken over: `state` is what `changed` makes of what the journals say.

    places: of all processes that may still be there. doomed: those of them that are not to stay,
    since the run was handed over and their places are filled anew.
    """

    changed: HeadChanged
    state: State
    places: tuple[Place, ...]
    doomed: tuple[Incarnation, ...]


def last_state(run_dir: Path) -> State | None:
    """What the journals of a run say; None: nothing yet. Raises ClusterError if they cannot be
    read.
    """
    entries = read_chronicle(run_dir).entries
    return replay(entry.event for entry in entries) if entries else None


def final_state(run_dir: Path) -> State | None:
    """The state of a run that has ended for good; None: it has not. Raises ClusterError."""
    state = last_state(run_dir)
    over = state is not None and state.phase is RunPhase.ENDED and not state.handover
    return state if over else None


def passes_on(state: State) -> bool:
    """Whether a run is ended, or left to the head of another job: no head of this job follows."""
    if state.phase is RunPhase.ENDED:
        return True
    return state.handover and state.phase in (RunPhase.DRAINING, RunPhase.STOPPING)


def inherit(run_dir: Path, head: int, *, now: float, wall: float) -> Inheritance | None:
    """The run for its `head`-th head; None: no other has decided anything yet.

    `now` and `wall` are this moment by the head's own clock and by the one on the wall. Raises
    ClusterError if something cannot be read.
    """
    chronicle = read_chronicle(run_dir)
    if not chronicle.entries:
        return None
    past = replay(entry.event for entry in chronicle.entries)
    shift = chronicle.lead_s - (wall - now)
    changed = HeadChanged(now, head, chronicle.counted, shift, claims(run_dir))
    state = apply(past, changed)
    left = leftovers(past)
    awaited = {name for name, worker in state.workers.items() if worker.awaited}
    doomed = tuple(_who(worker) for worker in left if worker.worker not in awaited)
    return Inheritance(changed, state, tuple(_places(run_dir, left)), doomed)


def _places(run_dir: Path, workers: list[Worker]) -> list[Place]:
    """By what the workers said to the head, or left in the run directory before."""
    roster = Roster(run_nonce(run_secret(run_dir)))
    directory = Directory(run_dir).under(WORKERS)
    wanted = {f"{_who(worker)}.json" for worker in workers if not worker.step}
    look(directory, roster, [name for name in directory.names() if name in wanted])
    places = []
    for worker in workers:
        record = roster.records.get(worker.worker)
        step = worker.step or (record.step if record is not None else "")
        places.append(Place(_who(worker), step, worker.node, worker.job))
    return places


def _who(worker: Worker) -> Incarnation:
    return Incarnation(worker.worker, worker.incarnation)
