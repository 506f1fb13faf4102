"""What a REFE says about its peers while it goes on. Data; whoever owns the REFE sends it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

LOST = "lost"  # exit, end of connection, broken protocol
SILENT = "silent"  # no answer to probes
OVERDUE = "overdue"  # alive as far as anybody knows, but no progress


@dataclass(frozen=True, slots=True)
class Suspicion:
    """An EW looks dead, stopped or slow from here; its work goes elsewhere."""

    peer: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Clearance:
    """An EW that was suspected gets work again."""

    peer: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Failover:
    """The failure of an EW is masked: what it did not answer has been answered by others.

    detected, rerouted, answered: seconds on the REFE's clock; pairs: output rows asked again
    """

    peer: str
    incarnation: int
    how: str
    detected: float
    rerouted: float
    answered: float
    pairs: int


Report: TypeAlias = Suspicion | Clearance | Failover
