"""Local processes: started apart, watched, ended with everything they started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarragon_hpc.cluster.forking import ForkServers
from tarragon_hpc.cluster.local import LocalLauncher, check_prefixes, log_path, log_tail
from tarragon_hpc.cluster.spec import WorkerSpec
from tarragon_hpc.errors import ClusterError, ConfigError
from tarragon_hpc.ids import Incarnation, Role

EW0 = Incarnation("ew0", 1)
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); {SLEEP}"


class Bench:
    """A launcher with one spec, and what it reported."""

    def __init__(self, run_dir: Path, code: str, **spec: object) -> None:
        (run_dir / "logs").mkdir()
        program = (sys.executable, "-c", code)
        specs = {"ew0": WorkerSpec("ew0", Role.EW, None, program=program, **spec)}
        self.run_dir = run_dir
        self.exits: list[tuple[Incarnation, int]] = []
        self.grown = asyncio.Event()
        self.endings: list[Incarnation] = []
        self.launcher = LocalLauncher(specs, run_dir, self.endings.append, self.on_exit)

    def on_exit(self, who: Incarnation, returncode: int) -> None:
        self.exits.append((who, returncode))
        self.grown.set()

    async def exit(self) -> int:
        await asyncio.wait_for(self.grown.wait(), 20)
        ((who, returncode),) = self.exits
        assert who == EW0
        assert self.endings == [EW0]
        return returncode

    async def output(self) -> str:
        async with asyncio.timeout(20):
            while not log_tail(log_path(self.run_dir, EW0)):
                await asyncio.sleep(0.005)
        return log_tail(log_path(self.run_dir, EW0))


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_has_its_arguments_session_environment_and_log(tmp_path: Path):
    code = "import os, sys; print(sys.argv[1:], os.getsid(0) == os.getpid(), os.environ['X'])"

    async def scenario() -> None:
        bench = Bench(tmp_path, code, env={"X": "value"})
        pid = bench.launcher.start(EW0)
        assert await bench.exit() == 0
        expected = ["--worker", "ew0", "--incarnation", "1", "--run-dir", str(tmp_path)]
        expected += ["--parent", str(os.getpid()), "--lifeline"]
        assert (await bench.output()).startswith(f"{expected}"[:-1])
        assert (await bench.output()).endswith("True value")
        assert not exists(pid)
        assert "nothing runs" in repr(bench.launcher)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV)],
)
def test_every_exit_is_reported_with_its_code(tmp_path: Path, code, returncode):
    async def scenario() -> None:
        bench = Bench(tmp_path, code)
        bench.launcher.start(EW0)
        assert await bench.exit() == returncode

    asyncio.run(scenario())


def test_an_exit_is_seen_at_once(tmp_path: Path):
    async def scenario() -> float:
        bench = Bench(tmp_path, SLEEP)
        pid = bench.launcher.start(EW0)
        await bench.output()
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert await bench.exit() == -signal.SIGKILL
        return time.monotonic() - killed

    assert asyncio.run(scenario()) < 0.5


HOLDS = """
import os, subprocess, sys, threading
from tarragon_hpc.cluster.lifeline import hold
fd = int(sys.argv[1])
hold(fd)
try:
    os.fstat(fd)
except OSError:
    here = "gone"
else:
    here = "still here"
apart = subprocess.Popen(["sleep", "60"], close_fds=False, start_new_session=True)
print(here, apart.pid, *(t.name for t in threading.enumerate()), flush=True)
apart.wait()
"""


def test_a_lifeline_belongs_to_a_thread_alone_and_ends_with_it():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(theirs.fileno())],
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            text=True,
        )
        theirs.close()
        with process:
            where, apart, *threads = process.stdout.readline().split()
            try:
                assert where == "gone"
                assert "lifeline" in threads
                ours.setblocking(False)
                with pytest.raises(BlockingIOError):
                    ours.recv(1)
                ours.settimeout(10)
                process.kill()
                # Its child, which got all files of the process, lives on; the lifeline does not.
                assert ours.recv(1) == b""
                assert exists(int(apart))
            finally:
                os.kill(int(apart), signal.SIGKILL)


def test_what_a_worker_started_ends_with_it(tmp_path: Path):
    async def scenario() -> None:
        bench = Bench(tmp_path, PARENT)
        pid = bench.launcher.start(EW0)
        child = int((await bench.output()).split()[0])
        assert exists(child)
        os.kill(pid, signal.SIGKILL)
        await bench.exit()
        async with asyncio.timeout(10):
            while exists(child):
                await asyncio.sleep(0.005)

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "end"), [(SLEEP, signal.SIGTERM), (DEAF, signal.SIGKILL)])
def test_who_does_not_leave_is_made_to(tmp_path: Path, monkeypatch, code, end):
    monkeypatch.setattr("tarragon_hpc.cluster.local._TERM_GRACE_S", 0.1)

    async def scenario() -> None:
        bench = Bench(tmp_path, code)
        bench.launcher.start(EW0)
        await bench.output()
        bench.launcher.stop(EW0, 0.0)
        assert await bench.exit() == -end

    asyncio.run(scenario())


def test_close_waits_until_everything_is_gone(tmp_path: Path):
    async def scenario() -> None:
        bench = Bench(tmp_path, DEAF)
        pid = bench.launcher.start(EW0)
        await bench.output()
        assert repr(bench.launcher) == "LocalLauncher(ew0.1)"
        await bench.launcher.close()
        assert not exists(pid)
        assert bench.exits == [(EW0, -signal.SIGKILL)]
        bench.launcher.kill(EW0)
        bench.launcher.stop(EW0, 0.0)

    asyncio.run(scenario())


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path):
    async def scenario() -> None:
        (tmp_path / "logs").mkdir()
        spec = WorkerSpec("ew0", Role.EW, None, program=("/nowhere/python",))
        launcher = LocalLauncher({"ew0": spec}, tmp_path, print, print)
        with pytest.raises(ClusterError, match="cannot start ew0.1: .*/nowhere/python"):
            launcher.start(EW0)

    asyncio.run(scenario())


def test_a_program_before_a_worker_becomes_it(tmp_path: Path):
    """Its pid, its session and its end are the worker's."""
    line = "f\"{os.getpid()} {os.getsid(0)} {os.environ['X']}\".encode()"
    code = f"import os; os.write(1, {line})\n{SLEEP}"

    async def scenario() -> None:
        bench = Bench(tmp_path, code, prefix=("nice", "-n", "1", "env", "X=value"))
        pid = bench.launcher.start(EW0)
        assert (await bench.output()).startswith(f"{pid} {pid} value")
        bench.launcher.kill(EW0)
        assert await bench.exit() == -signal.SIGKILL

    asyncio.run(scenario())


def test_a_worker_with_a_prefix_is_not_forked(tmp_path: Path):
    """Nobody is asked to fork it: there is no fork server that could answer."""
    (tmp_path / "logs").mkdir()

    async def scenario() -> int | None:
        spec = WorkerSpec("ew0", Role.EW, None, prefix=("sh", "-c", "exec sleep 60"))
        ended = asyncio.Event()
        forks = ForkServers(tmp_path, ["/nowhere/python"])
        launcher = LocalLauncher(
            {"ew0": spec}, tmp_path, print, lambda who, returncode: ended.set(), forks
        )
        pid = launcher.start(EW0)
        assert repr(forks) == "ForkServers()"
        await launcher.close()
        assert ended.is_set()
        return pid

    assert asyncio.run(scenario()) is not None


def test_a_program_of_a_prefix_that_is_not_there_is_a_clear_error():
    check_prefixes({"ew0": ["nice", "-n", "5"], "cs": [sys.executable]})
    with pytest.raises(ConfigError) as error:
        check_prefixes({"ew0": ["nice"], "cs": ["/nowhere/numactl", "-N", "0"]})
    assert str(error.value) == (
        "cluster.prefix.cs: '/nowhere/numactl': no such program; give its path"
    )


def test_the_tail_of_a_log(tmp_path: Path):
    path = tmp_path / "log"
    assert log_tail(path) == ""
    path.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % i for i in range(5000)))
    assert log_tail(path, lines=2) == "line 4998\nline 4999"
    path.write_bytes(b"x" * 100_000)
    assert log_tail(path) == "x" * 8192


GRANDPARENT = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
child = subprocess.Popen(command, stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
sys.stdin.read()
"""
CHILD = """
import os, sys, time
from tarragon_hpc.cluster.lifeline import die_with
die_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent_however_that_ends():
    parent = subprocess.Popen(
        [sys.executable, "-c", GRANDPARENT, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        child = int(parent.stdout.readline())
        assert exists(child)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while exists(child) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not exists(child)
