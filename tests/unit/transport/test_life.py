"""Signs of life: given up by a death of any kind, before anything else of the process goes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

import tarragon_hpc
from tarragon_hpc import native
from tarragon_hpc.transport.bell import ProcessDoorbell
from tarragon_hpc.transport.memory import create_memory

pytestmark = pytest.mark.native

SOON = 20.0
PACKAGE = str(pathlib.Path(tarragon_hpc.__file__).parent.parent)

# Gives signs of life in inherited memory, with some memory of its own to be unmapped at its end.
OWNER = """
import os, sys, time
from tarragon_hpc import native
memory = native.module.map_shared(int(sys.argv[1]), native.module.BELL_BYTES)
sign = native.module.LifeSign(memory)
ballast = os.urandom(1 << 26)
print("alive", flush=True)
exec(sys.argv[2])
"""


class Watched:
    """A process that gives signs of life, and a watch on one of them."""

    def __init__(self, word=0, then="time.sleep(100)"):
        n = native.module
        fd, self.memory = create_memory("life", n.BELL_BYTES)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(fd), then],
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[fd],
            env=os.environ | {"PYTHONPATH": PACKAGE},
        )
        os.close(fd)
        assert self.process.stdout.readline() == "alive\n"
        self.bell = ProcessDoorbell()
        ring = memoryview(bytearray(4096))
        start = -n.address_of(ring) % 64
        ring = ring[start : start + n.ring_bytes(1, 64)]
        self.slots = n.ServerSlots(ring, ring, 1, 64, 64, self.bell.native)
        self.seen = self.bell.value()
        self.watch = n.LifeWatch(self.memory, word, self.slots, self.bell.native)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.watch.stop()
        self.bell.close()


@pytest.fixture(params=[0, 255])
def watched(request):
    made = Watched(request.param)
    yield made
    made.end()


def test_a_kill_is_seen(watched):
    assert not watched.slots.lost
    watched.process.kill()
    assert watched.bell.wait(watched.seen, SOON) != watched.seen
    assert watched.slots.lost


def test_a_stop_is_no_death(watched):
    watched.process.send_signal(signal.SIGSTOP)
    assert watched.bell.wait(watched.seen, 0.1) == watched.seen
    assert not watched.slots.lost


@pytest.mark.parametrize("then", ["os._exit(3)", "os.abort()", "os.execv('/bin/true', ['true'])"])
def test_every_end_of_a_process_is_seen(then):
    watched = Watched(then=then)
    assert watched.slots.lost or watched.bell.wait(watched.seen, SOON) != watched.seen
    assert watched.slots.lost
    watched.end()


def test_an_owner_that_is_dead_already_is_seen_at_once():
    first = Watched(then="os._exit(0)")
    first.process.wait()
    late = native.module.LifeWatch(first.memory, 7, first.slots, first.bell.native)
    assert first.slots.lost or first.bell.wait(first.seen, SOON) != first.seen
    late.stop()
    first.end()


def test_a_watch_that_was_stopped_says_nothing(watched):
    watched.watch.stop()
    watched.watch.stop()
    watched.process.kill()
    watched.process.wait()
    assert not watched.slots.lost


def test_an_orderly_end_of_the_sign_says_nothing():
    watched = Watched(then="del sign, memory; sys.stdin.read(); time.sleep(100)")
    assert watched.bell.wait(watched.seen, 0.1) == watched.seen
    assert not watched.slots.lost
    watched.end()


def test_no_such_sign(watched):
    with pytest.raises(ValueError, match="no such sign of life"):
        native.module.LifeWatch(watched.memory, 256, watched.slots, watched.bell.native)


def test_signs_are_given_out_once_and_come_back():
    bell = ProcessDoorbell()
    with bell.life() as first, bell.life() as second:
        assert first != second
    with pytest.raises(KeyError), bell.life() as third:
        raise KeyError
    with bell.life() as again:
        assert again == third
    bell.close()
