"""SIGTERM in a worker."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest

from tarragon_hpc.wire import notice
from tarragon_hpc.wire.notice import Terminator
from tarragon_hpc.wire.to_head import Notice


@pytest.fixture
def worker():
    """Factory: backend → a process with a handler, what it sent and how often it would leave."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM)}

    def make(backend):
        found = SimpleNamespace(sent=[], left=0, told=False)

        def leave():
            found.left += 1

        config = SimpleNamespace(cluster=SimpleNamespace(backend=backend))
        context = SimpleNamespace(worker="aw0", incarnation=2, config=config)
        Terminator(context, found.sent.append, leave, lambda: found.told).install()
        return found

    yield make
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_local_worker_leaves(worker):
    me = worker("local")
    os.kill(os.getpid(), signal.SIGTERM)
    assert (me.sent, me.left) == ([], 1)


def test_a_worker_on_slurm_says_so_and_serves_on_for_a_while(worker, monkeypatch):
    monkeypatch.setattr(notice, "NOTICE_S", 1)
    me = worker("slurm")
    os.kill(os.getpid(), signal.SIGTERM)
    assert (me.sent, me.left) == ([Notice("aw0", 2, "SIGTERM")], 0)
    end = time.monotonic() + 5
    while not me.left and time.monotonic() < end:
        time.sleep(0.01)
    assert me.left == 1


def test_the_second_time_it_leaves(worker):
    me = worker("slurm")
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (len(me.sent), me.left) == (1, 1)


def test_a_worker_that_was_told_to_leave_does(worker):
    me = worker("slurm")
    me.told = True
    os.kill(os.getpid(), signal.SIGTERM)
    assert (me.sent, me.left) == ([], 1)
