"""Names of workers and runs.

A worker id is its role and a number (`aw0`, `ew3`). It is the name of a *place* in the service;
the process that fills the place is told apart by its incarnation, which starts at 1, grows by one
with every start and is never reused (DESIGN §1).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

_WORKER_ID = re.compile(r"^(aw|ew|cs)(0|[1-9][0-9]{0,5})$")


class Role(StrEnum):
    """What a worker process is for."""

    AW = "aw"
    EW = "ew"
    CS = "cs"


class Incarnation(NamedTuple):
    """One process that fills a worker's place."""

    worker: str
    number: int

    def __str__(self) -> str:
        return f"{self.worker}.{self.number}"


def worker_id(role: Role, number: int) -> str:
    """The id of the `number`-th worker of a role."""
    return f"{role.value}{number}"


def parse_worker_id(text: str) -> tuple[Role, int]:
    """Split `aw0` into (Role.AW, 0). Raises ValueError on anything else."""
    match = _WORKER_ID.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a worker id; expected e.g. aw0, ew3 or cs0")
    return Role(match[1]), int(match[2])
