"""What `plan` can ask for. Every action carries its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tarragon_hpc.ids import Incarnation
    from tarragon_hpc.orchestrator.placement import Placement


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process for a worker's place."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Greet:
    """Answer a registration; `experts` and `shadows` are what an EW must load."""

    worker: str
    incarnation: int
    epoch: int
    experts: tuple[int, ...] | None
    shadows: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Make a new ERT known to the run."""

    epoch: int
    table: tuple[tuple[str, ...], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SendTable:
    """Send the current ERT to an AW."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class SendStores:
    """Tell an AW which checkpoint stores serve: their incarnations by their ids."""

    worker: str
    incarnation: int
    stores: Mapping[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """Tell an EW to load experts beside those that it serves."""

    worker: str
    incarnation: int
    experts: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Tell an EW to drop experts that no table in use names it for."""

    worker: str
    incarnation: int
    experts: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Rearrange:
    """Have other EWs hold other experts."""

    placement: Placement
    reason: str


@dataclass(frozen=True, slots=True)
class Condemn:
    """Declare a worker lost whose process may still run; `how` as in WorkerLost. absent: it, if it
    never registered.
    """

    worker: str
    incarnation: int
    how: str
    reason: str
    absent: tuple[Incarnation, ...] = ()


@dataclass(frozen=True, slots=True)
class Fence:
    """Make sure that a lost incarnation does nothing any more."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Do not start a dead worker again."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell an AW to finish what it runs and leave."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a worker to leave; signals follow after `grace_s` seconds."""

    worker: str
    incarnation: int
    grace_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget a retired worker that is gone."""

    worker: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """The job is being taken away: another head is to go on with the run."""

    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run cannot go on: stop it as failed. absent: who is waited for and never registered."""

    reason: str
    absent: tuple[Incarnation, ...] = ()


@dataclass(frozen=True, slots=True)
class EndRun:
    """Nothing is left to wait for."""

    reason: str


Action: TypeAlias = (
    Start
    | Greet
    | Publish
    | SendTable
    | SendStores
    | Load
    | Unload
    | Rearrange
    | Condemn
    | Fence
    | Abandon
    | Drain
    | Stop
    | Remove
    | HandOver
    | GiveUp
    | EndRun
)
