"""A warm spare: what ends it, and what it becomes."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec
import pytest

from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.cluster.spare import Assignment
from tarragon_hpc.cluster.spec import ENTRY
from tarragon_hpc.config import load_config

# An EW's imports take as long as these; `worker` is what it runs then.
LIGHT = """
import os, sys, time, types
worker, preload = types.ModuleType("tarragon_hpc.expert.worker"), types.ModuleType("p")
def main(context):
    print("I am", context.worker, context.incarnation, os.environ.get("X"), flush=True)
    print("thread count", os.environ.get("OPENBLAS_NUM_THREADS"), file=sys.stderr, flush=True)
    print("stdin", os.readlink("/proc/self/fd/0"), flush=True)
    return 5
worker.main, preload.preload = main, lambda: time.sleep(float(os.environ["IMPORTS_S"]))
sys.modules |= {"tarragon_hpc.expert.worker": worker, "tarragon_hpc.expert.preload": preload}
from tarragon_hpc.cluster import entry
entry.leave(entry.main())
"""


@pytest.fixture
def run_dir(tmp_path):
    return create_run(load_config({"model": {"path": "m"}}), tmp_path / "run")


@pytest.fixture
def spare(run_dir, monkeypatch):
    """Start one whose imports take so long."""
    started = []

    def start(imports_s):
        monkeypatch.setenv("IMPORTS_S", str(imports_s))
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_STEP_ID", "3")
        command = [sys.executable, "-c", LIGHT, "--standby", "spare0", "--roles", "ew"]
        pipe = subprocess.PIPE
        with (run_dir / "said").open("wb") as said:
            process = subprocess.Popen(
                [*command, "--run-dir", str(run_dir)], stdin=pipe, stdout=pipe, stderr=said
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_it_says_that_it_is_ready_and_becomes_a_worker(spare, run_dir):
    write_head(run_dir, HeadRecord("r", 1, "h", "127.0.0.1", 9, "", ""))
    process, log = spare(0), run_dir / "logs" / "ew0.4.log"
    assert process.stdout.readline() == b"ready 7.3\n"
    arguments = ["--worker", "ew0", "--incarnation", "4", "--run-dir", str(run_dir)]
    order = Assignment("ew0.4", [*arguments, "--log", str(log)], {"X": "1"})
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    process.stdin.flush()
    assert process.wait(20) == 5
    assert process.stdout.read() == b""
    assert "I am ew0 4 1" in log.read_text()
    assert "thread count None" in log.read_text()
    assert "stdin /dev/null" in log.read_text()


def test_an_ew_does_not_wait_for_the_imports(spare, run_dir):
    process, log = spare(60), run_dir / "logs" / "ew0.1.log"
    write_head(run_dir, HeadRecord("r", 1, "h", "127.0.0.1", 9, "", ""))
    arguments = ["--worker", "ew0", "--incarnation", "1", "--run-dir", str(run_dir)]
    order = Assignment("ew0.1", [*arguments, "--log", str(log)], {})
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    process.stdin.flush()
    assert process.wait(20) == 2  # the model is not there
    assert "ew0.1 ERROR" in log.read_text()


@pytest.mark.parametrize("imports_s", [0, 60])
def test_it_ends_with_its_head_even_amid_the_imports(spare, imports_s):
    process = spare(imports_s)
    if not imports_s:
        process.stdout.readline()
    began = time.monotonic()
    process.stdin.close()
    assert process.wait(20) == 0
    assert time.monotonic() - began < 15


def test_it_is_told_what_it_may_become():
    done = subprocess.run(
        [*ENTRY, "--standby", "spare0", "--roles", "xw", "--run-dir", "."],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--roles" in done.stderr
