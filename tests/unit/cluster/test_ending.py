"""What ends a head, and whether the run ends with it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tarragon_hpc.cluster.ending import Ending, Wish, meaning, signals
from tarragon_hpc.config import ClusterConfig, SlurmConfig


def cluster(backend: str = "slurm", drain_s: float = 30, signal_s: int = 180) -> ClusterConfig:
    return ClusterConfig(
        backend=backend, drain_timeout_s=drain_s, slurm=SlurmConfig(signal_s=signal_s)
    )


@pytest.mark.parametrize(
    ("number", "backend", "handover"),
    [
        (signal.SIGUSR2, "slurm", True),
        (signal.SIGUSR2, "local", True),
        (signal.SIGTERM, "slurm", True),
        (signal.SIGTERM, "local", False),
        (signal.SIGINT, "slurm", False),
        (signal.SIGHUP, "slurm", False),
    ],
)
def test_what_a_signal_means(number, backend, handover):
    assert meaning(number, cluster(backend)).handover is handover


def test_a_drain_never_takes_more_than_the_time_that_is_left():
    assert meaning(signal.SIGUSR2, cluster(drain_s=1000)).drain_s == 150
    assert meaning(signal.SIGUSR2, cluster(drain_s=20)).drain_s == 20
    assert meaning(signal.SIGTERM, cluster(drain_s=20)).drain_s == 2
    assert meaning(signal.SIGTERM, cluster(drain_s=1)).drain_s == 1
    assert meaning(signal.SIGUSR2, cluster(drain_s=1000)).save_s == 15
    assert meaning(signal.SIGUSR2, cluster(drain_s=20)).save_s == 145
    assert meaning(signal.SIGTERM, cluster(drain_s=20)).save_s == 5
    assert meaning(signal.SIGINT, cluster()) == Wish("the head was told to stop")


def test_the_first_wish_counts_and_the_next_signal_hurries():
    ending = Ending(asyncio.Event(), cluster())
    ending.signalled(signal.SIGUSR2)
    assert (ending.handover, ending.stop.is_set(), ending.hurry.is_set()) == (True, True, False)
    ending.hand_over("its workers say so")
    assert ending.reason == "the job's time limit is near"
    ending.signalled(signal.SIGUSR2)
    assert not ending.hurry.is_set()
    ending.signalled(signal.SIGTERM)
    assert ending.hurry.is_set()


def test_a_stop_stays_a_stop():
    ending = Ending(asyncio.Event(), cluster())
    ending.signalled(signal.SIGINT)
    ending.signalled(signal.SIGUSR2)
    ending.hand_over("its workers say so")
    assert (ending.handover, ending.hurry.is_set(), ending.drain_s) == (False, False, 30)


def test_signals_of_the_process_arrive():
    async def scenario() -> bool:
        ending = Ending(asyncio.Event(), cluster())
        with signals(ending):
            os.kill(os.getpid(), signal.SIGUSR2)
            await asyncio.wait_for(ending.stop.wait(), 5)
        return ending.handover

    assert asyncio.run(scenario())
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
