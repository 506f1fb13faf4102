"""What can happen to a run. The journal holds these, `apply` folds them into a State.

`at` is the head's monotonic clock in seconds. One closed union: mypy finds a forgotten case.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class _Event(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    at: float


class _About(_Event, frozen=True):
    """An event about one incarnation of a worker; stale ones change nothing."""

    worker: str
    incarnation: int


class RunCreated(_Event, frozen=True):
    """The first event of every journal: what was decided before anything ran."""

    run: str
    workers: list[str]
    experts: int
    primaries: dict[str, list[int]]
    shadows: dict[str, list[int]]


class WorkerStarted(_About, frozen=True):
    """A process was started. The only event that may bring a new incarnation."""

    pid: int | None


class WorkerRegistered(_About, frozen=True):
    """The worker connected; `address` is where its data plane listens."""

    pid: int
    host: str
    address: dict[str, str]


class WorkerWelcomed(_About, frozen=True):
    """The worker was told what to load."""


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


class WorkerSilent(_About, frozen=True):
    """Heartbeats are missing; the connection is still there."""

    silent_s: float


class WorkerHeard(_About, frozen=True):
    """A silent worker was heard again."""


class WorkerSuspected(_About, frozen=True):
    """A peer reports that this worker looks dead, stopped or slow from where it stands."""

    by: str
    reason: str


class WorkerLost(_About, frozen=True):
    """The worker's process is ending, its connection ended, or it sent garbage.

    `how`: what told it first.
    """

    how: str
    reason: str


class WorkerExited(_About, frozen=True):
    """The worker's process ended, or could not be started."""

    exit: str


class WorkerStopAsked(_About, frozen=True):
    """The worker was told to leave."""

    reason: str


class WorkerLeaving(_About, frozen=True):
    """The worker says that it is about to exit in good order."""

    reason: str


class WorkerFenced(_About, frozen=True):
    """What may be left of a lost worker was killed."""


class DrainBegan(_Event, frozen=True):
    """Nothing new is admitted; running requests have `drain_s` seconds left."""

    reason: str
    drain_s: float


class StopBegan(_Event, frozen=True):
    """The workers are to leave now. `failed`: because the run cannot go on."""

    reason: str
    failed: bool


class RunEnded(_Event, frozen=True):
    """No worker is left."""


Event: TypeAlias = (
    RunCreated
    | WorkerStarted
    | WorkerRegistered
    | WorkerWelcomed
    | WorkerReady
    | TablePublished
    | TableSent
    | TableTaken
    | WorkerSilent
    | WorkerHeard
    | WorkerSuspected
    | WorkerLost
    | WorkerExited
    | WorkerStopAsked
    | WorkerLeaving
    | WorkerFenced
    | DrainBegan
    | StopBegan
    | RunEnded
)
AboutWorker: TypeAlias = (
    WorkerStarted
    | WorkerRegistered
    | WorkerWelcomed
    | WorkerReady
    | TableSent
    | TableTaken
    | WorkerSilent
    | WorkerHeard
    | WorkerSuspected
    | WorkerLost
    | WorkerExited
    | WorkerStopAsked
    | WorkerLeaving
    | WorkerFenced
)
