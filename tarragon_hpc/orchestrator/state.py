"""What the head knows about a run. Immutable; only `apply` makes new ones.

Everything here comes from the journal, so that a replay gives the same state. What changes ten
times a second and is worthless after a restart (when a worker was last heard, its counters) is
kept beside it, in `service`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from tarragon_hpc.ids import Role
from tarragon_hpc.orchestrator.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.orchestrator.placement import Placement


class Phase(StrEnum):
    """The life of one incarnation of a worker, in order; the last two are ends."""

    PLANNED = "planned"  # no process yet
    STARTING = "starting"  # the process runs, but has not reported
    REGISTERED = "registered"  # it has reported, and waits for its Welcome
    LOADING = "loading"  # it loads what it was told to
    READY = "ready"  # it could serve; AW: not yet routed, EW: not yet in a table; never of a CS
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


# A worker that served for so long before it died is no sign of a crash loop.
STEADY_S = 1.0


class Order(NamedTuple):
    """Experts that an EW was told to load, or to drop if not `load`, and when."""

    load: bool
    experts: frozenset[int]
    at: float

    def done(self, held: frozenset[int]) -> bool:
        """Whether who holds this has carried it out."""
        return self.experts <= held if self.load else self.experts.isdisjoint(held)


class Failure(NamedTuple):
    """Orders that failed in a row: how many, and when the last did."""

    times: int
    at: float


class Link(NamedTuple):
    """How an AW is connected to an incarnation of a peer: the transport, and why none better."""

    incarnation: int
    kind: str
    reason: str


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
    stores: Mapping[str, int] = field(default_factory=dict)
    """The checkpoint stores that this AW was last told of: their incarnations by their ids."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """The newest connection of this AW to each peer; the peer may have gone since."""
    step: str = ""
    """Of Slurm, `job.step`."""
    node: str = ""
    """What Slurm calls its host, if it says; of the last incarnation until this one registers."""
    responsive: bool = True
    silent_at: float = 0.0
    """When it was found silent, if it is not `responsive`."""
    fenced: bool = False
    exit: str | None = None
    """How the process ended, once that is known."""
    reason: str = ""
    """Why it is leaving or gone."""
    condemned: bool = False
    """It was declared lost while its process may still run."""

    holds: frozenset[int] = frozenset()
    """Experts that this EW can serve now."""
    orders: tuple[Order, ...] = ()
    """What it was told to load or drop and has not answered for; it answers in this order."""
    failed: Mapping[int, Failure] = field(default_factory=dict)
    """Experts that it could not load or drop."""

    started: float = 0.0
    """When this incarnation's process was started, or its job began to run."""
    job: str = ""
    """The Slurm job of this incarnation alone, if it has one."""
    queued: str = ""
    """Why that job waits (also: waited when it ended), or there is none yet; empty: it runs."""
    expected_start: str = ""
    """When Slurm means to start the job that waits, in Slurm's words."""
    restarts: tuple[float, ...] = ()
    """When this place was filled again after a death; not if only a job that waited had ended."""
    restart_nodes: tuple[str | None, ...] = ()
    """Where the incarnations before these restarts had been, if that was known."""
    hasty: int = 0
    """How many restarts in a row led to nothing steady (`STEADY_S`)."""
    before: str = ""
    """How the incarnation before this one ended."""
    given_up: bool = False
    """It is not started again; `reason` says why."""
    retired: bool = False
    """It is to leave the run once nothing depends on it."""
    draining: bool = False
    """This AW finishes what it runs and gets nothing new."""
    noticed: float = 0.0
    """When it was given notice from outside the run: it may be killed soon. 0: it was not."""

    @property
    def place(self) -> str | None:
        """The node that it is, or was last, on; None: not known yet."""
        return self.node or self.host

    awaited: bool = False
    """The head has changed and this worker has not come to the new one yet: it is taken to be what
    it was.
    """
    suspected: bool = False
    """While it is awaited: a peer says that it looks dead."""
    taken: int = 0
    """An earlier head may have started incarnations up to this one without saying so."""

    @property
    def loading(self) -> frozenset[int]:
        """Experts that this EW was told to load and has not answered for."""
        return frozenset(e for order in self.orders if order.load for e in order.experts)

    @property
    def dropping(self) -> frozenset[int]:
        """Experts that this EW was told to drop and has not answered for."""
        return frozenset(e for order in self.orders if not order.load for e in order.experts)

    @property
    def next(self) -> int:
        """The incarnation that takes its place: one that nobody ever was."""
        return max(self.incarnation, self.taken) + 1

    @property
    def serves(self) -> bool:
        """It serves and can be reached."""
        return self.phase is Phase.SERVING and not self.awaited

    @property
    def live(self) -> bool:
        """It answers for what it holds or runs now."""
        return self.phase in (Phase.READY, Phase.SERVING)

    @property
    def serves_experts(self) -> bool:
        """An EW that answers for what it holds now."""
        return self.live and self.role is Role.EW

    @property
    def listens(self) -> bool:
        """An AW that takes tables, and is told of stores."""
        return self.role is Role.AW and self.phase in (Phase.LOADING, Phase.READY, Phase.SERVING)

    @property
    def stays(self) -> bool:
        """Nobody has said that it is to leave."""
        return not (self.retired or self.given_up or self.noticed)

    @property
    def waits_in_queue(self) -> str:
        """In words, for which job it waits and why; empty if it does not."""
        if self.phase is not Phase.STARTING or not self.queued:
            return ""
        if not self.job:
            return f"waits: {self.queued}"
        when = f", expected to start {self.expected_start}" if self.expected_start else ""
        return f"queued as job {self.job}: {self.queued}{when}"

    @property
    def member(self) -> bool:
        """It is meant to serve, now or once it has been started again."""
        return not (self.retired or self.given_up)


def _waits_as(worker: Worker) -> str:
    return "awaited" if worker.awaited else worker.waits_in_queue or worker.phase


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
    rules: Rules = Rules()
    removed: Mapping[str, int] = field(default_factory=dict)
    """The last incarnations of workers that have left the run: none is ever used again."""
    down_since: float | None = None
    """Since when the run as a whole serves nobody (`hopeless.down`); None: it does."""
    ran: bool = False
    """All workers served at some time."""
    handover: bool = False
    """The workers are told to leave so that another head goes on with the run elsewhere."""
    head: int = 1
    """The how-manieth head the run has."""
    changed: float = 0.0
    """When that head took over."""
    reviving: bool = False
    """That head starts all workers anew; no table has been published since."""
    stale: int = 0
    """Events about an incarnation that is not the current one; they changed nothing else."""

    @property
    def named(self) -> frozenset[str]:
        """The EWs in the published table."""
        return frozenset(name for holders in self.table for name in holders)

    @property
    def stores(self) -> dict[str, int]:
        """The checkpoint stores that AWs should use: their incarnations by their ids. One that is
        unresponsive stays: it may be heard again, and nobody waits for it. So does one that was
        given notice in a run that ends: it is to save what it gets until then.
        """
        last = self.phase is RunPhase.DRAINING
        stores = (w for w in self.of(Role.CS) if w.phase is Phase.SERVING)
        return {w.worker: w.incarnation for w in stores if w.stays or (w.noticed and last)}

    def links(self, worker: Worker) -> dict[str, Link]:
        """The connections of an AW to peers that are still there."""
        return {
            name: link
            for name, link in worker.links.items()
            if (peer := self.workers.get(name)) is not None
            and peer.incarnation == link.incarnation
            and peer.phase not in GONE
        }

    def of(self, role: Role) -> list[Worker]:
        """The workers of a role, in order of their number."""
        return [w for w in self.workers.values() if w.role is role]

    def waiting_for(self) -> str:
        """Who does not serve, in words: `aw0 (loading), ew1 (starting)`."""
        workers = self.workers.values()
        waits = (w for w in workers if not w.serves)
        return ", ".join(f"{w.worker} ({_waits_as(w)})" for w in waits)
