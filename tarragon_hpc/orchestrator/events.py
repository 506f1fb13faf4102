"""What can happen to a run. The journal holds these, `apply` folds them into a State.

`at` is the head's monotonic clock in seconds. One closed union: mypy finds a forgotten case.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tarragon_hpc.orchestrator.rules import Rules
from tarragon_hpc.wire.common import Standing


class _Event(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    at: float


class _About(_Event, frozen=True):
    """An event about one incarnation of a worker; stale ones change nothing."""

    worker: str
    incarnation: int


class RunCreated(_Event, frozen=True):
    """The first event of every run: what was decided before anything ran."""

    run: str
    workers: list[str]
    experts: int
    primaries: dict[str, list[int]]
    shadows: dict[str, list[int]]
    rules: Rules = Rules()
    head: int = 1


class HeadChanged(_Event, frozen=True):
    """The `head`-th head of the run takes over; the first event of its journal.

    `counted`: how many entries of the journal of each earlier head it has read; more do not count.
    `shift`: what makes times of the head before it times of its own clock. `claims`: the newest
    incarnation of every worker that any process has ever claimed to be.
    """

    head: int
    counted: dict[int, int]
    shift: float
    claims: dict[str, int] = {}


class WorkerStarted(_About, frozen=True):
    """A process was started. The only event that may bring a new incarnation."""

    pid: int | None


class WorkerQueued(_About, frozen=True):
    """The worker's own Slurm job waits, for this reason; an empty one: the worker runs now. Without
    a job it waits for a place where it could be started.

    `expected_start` is as Slurm prints it; empty: unknown.
    """

    job: str
    reason: str
    expected_start: str = ""


class WorkerRegistered(_About, frozen=True):
    """The worker connected; `address` is where its data plane listens. Under Slurm: its step, as
    `job.step`, and what Slurm calls its node.
    """

    pid: int
    host: str
    address: dict[str, str]
    step: str = ""
    node: str = ""


class WorkerReturned(_About, frozen=True):
    """A worker that had registered with an earlier head has come to this one."""

    pid: int
    host: str
    address: dict[str, str]
    standing: Standing
    step: str = ""
    node: str = ""


class WorkerWelcomed(_About, frozen=True):
    """The worker was told what to load: these experts, if it is an EW."""

    experts: list[int] = []


class WorkerReady(_About, frozen=True):
    """The worker has loaded what it needs."""

    detail: dict[str, str | int | float | list[int]]


class TablePublished(_Event, frozen=True):
    """There is a new ERT."""

    epoch: int
    table: list[list[str]]


class TableSent(_About, frozen=True):
    """An AW was sent the ERT of an epoch."""

    epoch: int


class TableTaken(_About, frozen=True):
    """An AW routes by the ERT of this epoch."""

    epoch: int


class StoresSent(_About, frozen=True):
    """An AW was told which checkpoint stores serve: their incarnations by their ids."""

    stores: dict[str, int]


class WorkerSilent(_About, frozen=True):
    """Heartbeats are missing; the connection is still there."""

    silent_s: float


class WorkerHeard(_About, frozen=True):
    """A silent worker was heard again."""


class WorkerSuspected(_About, frozen=True):
    """A peer reports that this worker looks dead, stopped or slow from where it stands."""

    by: str
    reason: str


class WorkerCleared(_About, frozen=True):
    """A peer that suspected this worker sends it work again."""

    by: str


class FailureMasked(_About, frozen=True):
    """A peer has masked the failure of this worker on its own (`wire.to_head.Masked`)."""

    by: str
    how: str
    detected_ago_s: float
    rerouted_ago_s: float
    answered_ago_s: float
    pairs: int


class WorkerLinked(_About, frozen=True):
    """An AW has connected to a peer (`wire.to_head.Linked`)."""

    peer: str
    peer_incarnation: int
    kind: str
    reason: str = ""


class LoadAsked(_About, frozen=True):
    """An EW was told to load experts beside those that it serves."""

    experts: list[int]
    reason: str


class UnloadAsked(_About, frozen=True):
    """An EW was told to drop experts; it does not count as their holder from now on."""

    experts: list[int]
    reason: str


class HoldingReported(_About, frozen=True):
    """All that an EW can serve, after a load or an unload; `error` if that failed."""

    experts: list[int]
    error: str | None = None


class WorkerLost(_About, frozen=True):
    """The worker's process is ending, its connection ended, it sent garbage, or it is condemned.

    `how`: what told it first.
    """

    how: str
    reason: str


# Ways in which a worker is lost by decision: its process may still run, and must be killed.
SILENCE, TIME, ZOMBIE = "silence", "time", "zombie"
CONDEMNED = frozenset({SILENCE, TIME, ZOMBIE})


class WorkerExited(_About, frozen=True):
    """The worker's process ended, or could not be started."""

    exit: str


class WorkerStopAsked(_About, frozen=True):
    """The worker was told to leave."""

    reason: str


class WorkerLeaving(_About, frozen=True):
    """The worker says that it is about to exit in good order."""

    reason: str


class WorkerNoticed(_About, frozen=True):
    """Something outside the run wants the worker to leave, and may kill it soon."""

    reason: str


class WorkerFenced(_About, frozen=True):
    """What may be left of a lost worker was killed."""


class WorkerGivenUp(_About, frozen=True):
    """A dead worker is not started again."""

    reason: str


class WorkerAdded(_Event, frozen=True):
    """The run is to have one more worker. `incarnation`: the last that had this name, or 0."""

    worker: str
    incarnation: int
    reason: str


class WorkerRetired(_About, frozen=True):
    """The run is to have one worker less: this one, once nothing depends on it."""

    reason: str


class WorkerDrained(_About, frozen=True):
    """A retired AW was told to finish what it runs and leave; it gets nothing new."""

    reason: str


class WorkerRemoved(_About, frozen=True):
    """A retired worker is gone, and no part of the run any more."""


class PlacementChanged(_Event, frozen=True):
    """Who should hold which experts from now on."""

    primaries: dict[str, list[int]]
    shadows: dict[str, list[int]]
    reason: str


class DrainBegan(_Event, frozen=True):
    """Nothing new is admitted; running requests have `drain_s` seconds left. `handover`: of
    StopBegan, which is to follow.
    """

    reason: str
    drain_s: float
    handover: bool = False


class StopBegan(_Event, frozen=True):
    """The workers are to leave now. `failed`: because the run cannot go on. `handover`: another
    head will go on with it, with other workers in their places.
    """

    reason: str
    failed: bool
    handover: bool = False


class RunEnded(_Event, frozen=True):
    """No worker is left."""


AboutWorker: TypeAlias = (
    WorkerStarted
    | WorkerQueued
    | WorkerRegistered
    | WorkerReturned
    | WorkerWelcomed
    | WorkerReady
    | TableSent
    | TableTaken
    | StoresSent
    | WorkerSilent
    | WorkerHeard
    | WorkerSuspected
    | WorkerCleared
    | FailureMasked
    | WorkerLinked
    | LoadAsked
    | UnloadAsked
    | HoldingReported
    | WorkerLost
    | WorkerExited
    | WorkerStopAsked
    | WorkerLeaving
    | WorkerNoticed
    | WorkerFenced
    | WorkerGivenUp
    | WorkerRetired
    | WorkerDrained
    | WorkerRemoved
)
Event: TypeAlias = (
    RunCreated
    | HeadChanged
    | TablePublished
    | WorkerAdded
    | PlacementChanged
    | DrainBegan
    | StopBegan
    | RunEnded
    | AboutWorker
)
