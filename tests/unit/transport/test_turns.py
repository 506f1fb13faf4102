"""Manners on shared CPUs."""

from __future__ import annotations

import os
import threading

from tarragon_hpc.transport.turns import spin_us, take_turns


def test_nobody_spins_on_the_cpu_of_its_peer():
    assert spin_us(20, shares_cpus=False) == 20
    assert spin_us(20, shares_cpus=True) == 0


def test_only_the_calling_thread_takes_turns():
    seen = []

    def compute():
        take_turns()
        seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
