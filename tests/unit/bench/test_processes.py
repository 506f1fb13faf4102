"""CPU time and memory of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tarragon_hpc.bench.processes import cpu_seconds, resident_bytes


def test_of_this_process():
    pid = os.getpid()
    assert cpu_seconds(pid) == pytest.approx(time.process_time(), abs=0.05)
    before = resident_bytes(pid)
    block = bytearray(b"x" * (64 << 20))
    assert resident_bytes(pid) - before >= 0.9 * len(block)


def test_of_another_one_and_of_one_that_is_gone():
    program = "x = [i * i for i in range(10**6)]; print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    assert cpu_seconds(child.pid) > 0.01
    assert resident_bytes(child.pid) > 1 << 20
    child.communicate(b"\n")
    assert cpu_seconds(child.pid) is None
    assert resident_bytes(child.pid) is None
