"""What the head knows about a run. Immutable; only `apply` makes new ones.

Everything here comes from the journal, so that a replay gives the same state. What changes ten
times a second and is worthless after a restart (when a worker was last heard, its counters) is
kept beside it, in `service`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tarragon_hpc.ids import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.orchestrator.placement import Placement


class Phase(StrEnum):
    """The life of one incarnation of a worker, in order; the last two are ends."""

    PLANNED = "planned"  # no process yet
    STARTING = "starting"  # the process runs, but has not reported
    REGISTERED = "registered"  # it has reported, and waits for its Welcome
    LOADING = "loading"  # it loads what it was told to
    READY = "ready"  # it could serve; AW: not yet routed, EW: not yet in a table
    SERVING = "serving"
    STOPPING = "stopping"  # asked to leave, or leaving by itself in good order
    STOPPED = "stopped"  # gone as asked
    DEAD = "dead"  # gone without being asked


GONE = frozenset({Phase.STOPPED, Phase.DEAD})
LEAVING = GONE | {Phase.STOPPING}


class RunPhase(StrEnum):
    """The life of a run, in order."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"  # nothing new is admitted; running requests finish
    STOPPING = "stopping"  # workers are told to leave
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Worker:
    """The current incarnation that fills a worker's place; 0: none yet."""

    worker: str
    role: Role
    phase: Phase = Phase.PLANNED
    incarnation: int = 0
    since: float = 0.0
    """When `phase` was entered (monotonic seconds)."""
    pid: int | None = None
    host: str | None = None
    address: Mapping[str, str] = field(default_factory=dict)
    detail: Mapping[str, str | int | float | list[int]] = field(default_factory=dict)
    table_sent: int = 0
    table_applied: int = 0
    """Epochs of the newest ERT sent to this AW, and of the one it routes by."""
    responsive: bool = True
    fenced: bool = False
    exit: str | None = None
    """How the process ended, once that is known."""
    reason: str = ""
    """Why it is leaving or gone."""

    @property
    def holds_experts(self) -> bool:
        """An EW that answers for its experts now."""
        return self.role is Role.EW and self.phase in (Phase.READY, Phase.SERVING)


@dataclass(frozen=True, slots=True)
class State:
    """One run. `table[e]` are the EWs of expert e in the published ERT of `epoch` (0: none yet)."""

    run: str
    workers: Mapping[str, Worker]
    placement: Placement
    phase: RunPhase = RunPhase.STARTING
    since: float = 0.0
    reason: str = ""
    failed: bool = False
    epoch: int = 0
    table: tuple[tuple[str, ...], ...] = ()
    drain_s: float = 0.0
    stale: int = 0
    """Events about an incarnation that is not the current one; they changed nothing else."""

    def of(self, role: Role) -> list[Worker]:
        """The workers of a role, in order of their number."""
        return [w for w in self.workers.values() if w.role is role]

    def waiting_for(self) -> str:
        """Who does not serve, in words: `aw0 (loading), ew1 (starting)`."""
        workers = self.workers.values()
        return ", ".join(f"{w.worker} ({w.phase})" for w in workers if w.phase is not Phase.SERVING)
