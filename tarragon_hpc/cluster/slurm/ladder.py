"""Where a worker can be started when its place is gone. Pure.

A slot of the allocation that is free; else a job of its own, which leaves out bad nodes; else it
waits for a slot, and the run goes on without it. A run without slots (pool) begins at the second.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Rung(StrEnum):
    """Of the ladder."""

    SLOT = "slot"
    JOB = "job"
    WAIT = "wait"


class Step(NamedTuple):
    """What to do about a worker, and why that."""

    rung: Rung
    reason: str


def climb(no_slot: str | None, *, pool: bool, replacement_jobs: bool) -> Step:
    """no_slot: why there is no slot for it; None: there is one."""
    if pool:
        return Step(Rung.JOB, "every worker of a pool is a job")
    if no_slot is None:
        return Step(Rung.SLOT, "a slot of the allocation is free")
    if replacement_jobs:
        return Step(Rung.JOB, no_slot)
    return Step(Rung.WAIT, f"{no_slot}, and cluster.slurm.replacement_jobs is false")


class Promise(NamedTuple):
    """A free slot that a worker in the queue gives its place there up for."""

    worker: str
    at: float


# By then its next incarnation has been started, or never will be.
_PROMISED_S = 60.0


def call_back(
    waiting: list[str], fitting: set[str], promise: Promise | None, now: float
) -> str | None:
    """Which of the workers in the queue is to leave it for a slot: the first that fits, one at a
    time, so that one slot is not promised to two.
    """
    if promise is not None and now - promise.at < _PROMISED_S:
        return None
    return next((worker for worker in waiting if worker in fitting), None)
