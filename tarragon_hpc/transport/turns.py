"""Manners of AWs and EWs that compute on the same CPUs: they take turns (a layer alternates between
attention and experts), so nobody may hold a CPU that the other needs.
"""

from __future__ import annotations

import os


def spin_us(configured: int, *, shares_cpus: bool) -> int:
    """How long to spin before sleeping, in microseconds: not at all on the CPU of the peer whose
    answer is awaited.
    """
    return 0 if shares_cpus else configured


def take_turns() -> None:
    """The calling thread, which computes, lets whoever it wakes up wait until it sleeps itself.

    An EW that answers two AWs would else lose its CPU to the first before it has told the second,
    and an AW would lose it to an EW that has nothing to do before the other AWs have sent theirs.
    SCHED_BATCH (sched(7)) is that: no preemption at a wake-up; the share of the CPU is the same.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
