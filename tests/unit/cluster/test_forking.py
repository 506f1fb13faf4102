"""Workers from fork servers: like fresh processes, and independent of where they came from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarragon_hpc.cluster import forking, local
from tarragon_hpc.cluster.forking import ForkServers, worth_restarting
from tarragon_hpc.cluster.forkserver import unfit
from tarragon_hpc.cluster.local import LocalLauncher, log_path
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.cluster.spec import WorkerSpec
from tarragon_hpc.config import load_config
from tarragon_hpc.ids import Incarnation, Role

LIGHT = (sys.executable, str(Path(__file__).with_name("light.py")))
EW0, EW1 = Incarnation("ew0", 1), Incarnation("ew1", 1)
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
REPORT = """
import json, os, random, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "argv": sys.argv,
    "cpus": sorted(os.sched_getaffinity(0)), "stdin": os.readlink("/proc/self/fd/0"),
    "x": os.environ.get("X"), "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
    "comm": open("/proc/self/comm").read(), "random": random.random(),
    "numpy": sys.modules["numpy"].random.random() if "numpy" in sys.modules else None,
    "files": sorted(os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{f}")),
}), flush=True)
print("to stderr", file=sys.stderr)
"""


class Bench:
    """A launcher of light EWs with fork servers, and what it reported."""

    def __init__(self, root: Path, monkeypatch, light: str = SLEEP, preload: str = "", **spec):
        monkeypatch.setattr(local, "ENTRY", LIGHT)
        monkeypatch.setenv("PRELOAD", preload)
        monkeypatch.setenv("LIGHT", light)
        self.run_dir = create_run(load_config({"model": {"path": "m"}}), root / "run")
        (root / "rt").mkdir(mode=0o700)
        write_head(self.run_dir, HeadRecord("r", 1, "h", "127.0.0.1", 4000, "", f"{root}/rt"))
        specs = {
            name: WorkerSpec(name, Role.EW, **{"cpus": None, "env": {}, "program": LIGHT, **spec})
            for name in ("ew0", "ew1")
        }
        self.exits: dict[Incarnation, int] = {}
        self.endings: list[Incarnation] = []
        self.forks = ForkServers(self.run_dir, LIGHT)
        self.launcher = LocalLauncher(
            specs, self.run_dir, self.endings.append, self.exits.__setitem__, self.forks
        )

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_) -> None:
        server = self.server
        await self.launcher.close()
        if server is not None:
            assert gone(server)

    @property
    def server(self) -> int | None:
        """The pid of the fork server."""
        servers = list(self.forks._servers.values())
        return servers[0].process.pid if servers else None

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    async def exit(self, who: Incarnation = EW0) -> int:
        await self.until(lambda: who in self.exits)
        assert self.endings.count(who) == 1
        return self.exits[who]

    async def output(self, who: Incarnation = EW0) -> str:
        path = log_path(self.run_dir, who)
        await self.until(lambda: path.exists() and path.read_text())
        return path.read_text()

    async def up(self, who: Incarnation = EW0) -> int:
        """The pid of a worker that was started."""
        await self.output(who)
        pid = self.launcher._children[who].pid
        assert pid is not None
        return pid

    def forked(self, who: Incarnation = EW0) -> bool:
        return self.launcher._children[who].process is None

    async def ready(self):
        """Until the fork server has done its imports."""
        await self.until(lambda: "ready" in repr(self.forks))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return lambda *args, **spec: Bench(tmp_path, monkeypatch, *args, **spec)


def run(scenario):
    asyncio.run(scenario())


def test_a_forked_worker_has_all_that_a_fresh_process_has(bench, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    cpu = min(os.sched_getaffinity(0))

    async def scenario():
        async with bench(REPORT, "import numpy", cpus=(cpu,), env={"X": "value"}) as made:
            assert made.launcher.start(EW0) is None
            assert made.launcher.start(EW1) is None
            assert await made.exit(EW0) == await made.exit(EW1) == 0
            server = made.server
            first, second = [(await made.output(who)).splitlines() for who in (EW0, EW1)]
            assert first[1:] == ["to stderr"]
            one, two = json.loads(first[0]), json.loads(second[0])
            assert one["parent"] == os.getpid()
            assert one["session"] == one["pid"] not in (two["pid"], server)
            assert (one["x"], one["blas"], one["cpus"]) == ("value", "3", [cpu])
            assert (one["stdin"], one["comm"]) == ("/dev/null", "ew0.1\n")
            assert one["random"] != two["random"]
            assert one["numpy"] != two["numpy"]
            log = str(log_path(made.run_dir, EW0))
            assert one["files"] == ["/dev/null", log, log]  # the lifeline is elsewhere
            assert made.endings == [EW0, EW1] or made.endings == [EW1, EW0]

    run(scenario)


@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('sorry')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV),
    ],
)
def test_every_exit_is_reported_with_its_code(bench, code, returncode):
    async def scenario():
        async with bench(code) as made:
            made.launcher.start(EW0)
            assert await made.exit() == returncode
            if code == "1 / 0":
                assert "ZeroDivisionError" in await made.output()

    run(scenario)


def test_workers_are_stopped_and_killed_like_others(bench):
    async def scenario():
        async with bench() as made:
            for who in (EW0, EW1):
                made.launcher.start(who)
                await made.up(who)
                assert made.forked(who)
            made.launcher.stop(EW0, 0.0)
            assert await made.exit(EW0) == -signal.SIGTERM
            made.launcher.kill(EW1)
            assert await made.exit(EW1) == -signal.SIGKILL

    run(scenario)


def test_what_a_worker_started_ends_with_it_and_is_waited_for(bench):
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True);" + SLEEP

    async def scenario():
        async with bench(code) as made:
            made.launcher.start(EW0)
            child = int((await made.output()).split()[0])
            os.kill(await made.up(), signal.SIGKILL)
            await made.exit()
            await made.until(lambda: gone(child))  # not even a zombie is left

    run(scenario)


def test_the_death_of_a_fork_server_harms_no_worker_and_another_one_is_started(bench):
    async def scenario():
        async with bench() as made:
            made.launcher.start(EW0)
            pid, first = await made.up(), made.server
            await made.ready()
            os.kill(first, signal.SIGKILL)
            await made.until(lambda: made.server not in (first, None))
            made.launcher.start(EW1)
            await made.up(EW1)
            assert made.forked(EW1)
            assert not gone(pid)
            os.kill(pid, signal.SIGKILL)
            assert await made.exit() == -signal.SIGKILL

    run(scenario)


def test_workers_it_owed_when_it_died_are_started_as_programs(bench):
    async def scenario():
        async with bench(preload="import time; time.sleep(60)") as made:
            for who in (EW0, EW1):
                assert made.launcher.start(who) is None
            os.kill(made.server, signal.SIGKILL)
            for who in (EW0, EW1):
                await made.up(who)
                assert not made.forked(who)
            assert made.endings == []
            made.launcher.kill(EW0)
            assert await made.exit() == -signal.SIGKILL

    run(scenario)


UNFIT = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True)"


@pytest.mark.parametrize("preload", [f"{UNFIT}.start()", "import no_such_module"])
def test_without_a_usable_fork_server_workers_are_programs(bench, preload):
    async def scenario():
        async with bench(preload=preload) as made:
            made.launcher.start(EW0)
            await made.up()
            await made.until(lambda: made.server is None)
            assert made.launcher.start(EW1) is not None  # it would be the same once more
            await made.up(EW1)
            assert not made.forked(EW0)
            assert made.server is None

    run(scenario)


def test_a_fork_server_that_hangs_is_given_up_for_a_program(bench, monkeypatch):
    monkeypatch.setattr(forking, "_FORK_S", 0.1)

    async def scenario():
        async with bench() as made:
            made.launcher.start(EW0)
            await made.up()
            await made.ready()
            hung = made.server
            os.kill(hung, signal.SIGSTOP)
            made.launcher.start(EW1)
            await made.up(EW1)
            assert not made.forked(EW1)
            await made.until(lambda: gone(hung))

    run(scenario)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_worker_that_is_killed_before_it_was_forked_never_runs(bench, how):
    async def scenario():
        async with bench(preload="import time; time.sleep(0.5)") as made:
            made.launcher.start(EW0)
            if how == "kill":
                made.launcher.kill(EW0)
            else:
                made.launcher.stop(EW0, 0.0)
            assert await made.exit() == -signal.SIGKILL
            made.launcher.start(EW1)
            await made.up(EW1)
            assert made.forked(EW1)

    run(scenario)


def test_close_ends_everything_also_what_is_not_there_yet(bench):
    async def scenario():
        made = bench(preload="import time; time.sleep(60)")
        made.launcher.start(EW0)
        server = made.server
        await made.launcher.close()
        assert gone(server)
        assert made.exits == {EW0: -signal.SIGKILL}
        orphan = await asyncio.create_subprocess_exec(
            "sh", "-c", "sleep 0.01 & echo $!", stdout=subprocess.PIPE
        )
        pid = int((await orphan.communicate())[0])
        with pytest.raises(ChildProcessError):  # this process adopts nobody any more
            os.waitpid(pid, 0)
        assert not log_path(made.run_dir, EW0).read_text()
        assert "nothing runs" in repr(made.launcher)

    run(scenario)


def test_other_programs_are_not_forked(bench):
    async def scenario():
        program = (sys.executable, "-c", SLEEP)
        async with bench(program=program) as made:
            assert made.launcher.start(EW0) == await made.up()
            assert made.server is None

    run(scenario)


HEAD = """
import asyncio, os, sys
from pathlib import Path
import tests.unit.cluster.test_forking as t
class Patch:
    def setattr(self, target, name, value): setattr(target, name, value)
    def setenv(self, name, value): os.environ[name] = value
async def main():
    made = t.Bench(Path(sys.argv[1]), Patch())
    made.launcher.start(t.EW0)
    pid = await made.up()
    await made.ready()
    print(pid, made.server, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("server_first", [False, True])
def test_nothing_outlives_the_head(tmp_path, server_first):
    root = Path(__file__).parents[3]
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    with head:
        worker, server = map(int, head.stdout.readline().split())
        if server_first:
            os.kill(server, signal.SIGKILL)
        assert not gone(worker)
        head.kill()
        head.wait()
        deadline = time.monotonic() + 10
        while not (dead(worker) and dead(server)) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert dead(worker)
        assert dead(server)


def dead(pid: int) -> bool:
    """Gone, or a zombie that whoever adopted it has not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


THREADS = """
import torch, ctypes
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/libgomp" in line}
print(torch.get_num_threads(), [ctypes.CDLL(m).omp_get_max_threads() for m in maps], flush=True)
"""


def test_each_worker_gets_its_number_of_openmp_threads(bench):
    """OpenMP reads it when it is loaded: in the fork server."""
    pytest.importorskip("torch")

    async def scenario():
        async with bench(THREADS, "import torch", env={"OMP_NUM_THREADS": "3"}) as made:
            made.launcher.start(EW0)
            await made.exit()
            made.launcher._specs["ew1"].env["OMP_NUM_THREADS"] = "5"
            made.launcher.start(EW1)
            await made.exit(EW1)
            for who, count in ((EW0, 3), (EW1, 5)):
                threads, _, loaded = (await made.output(who)).partition(" ")
                assert int(threads) == count
                assert set(json.loads(loaded)) == {count}

    run(scenario)


def test_what_must_not_be_forked():
    assert unfit(1, ["/dev/null", "pipe:[1]"]) is None
    assert unfit(3, []) == "the imports started 2 threads"
    assert unfit(1, ["/dev/null", "/dev/nvidiactl"]) == "the imports opened /dev/nvidiactl"


def test_what_is_worth_another_try():
    assert worth_restarting(was_ready=True, deaths=1)
    assert not worth_restarting(was_ready=False, deaths=1)
    assert not worth_restarting(was_ready=True, deaths=99)
