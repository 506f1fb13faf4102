"""The launcher of steps on a real Slurm, with processes that need no engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.testcluster import processes
from tarragon_hpc.cluster.launching import find_allocation
from tarragon_hpc.cluster.local import log_path
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import create_run, write_head
from tarragon_hpc.cluster.slurm.resources import components
from tarragon_hpc.cluster.slurm.slots import Use
from tarragon_hpc.cluster.slurm.step_launcher import StepLauncher
from tarragon_hpc.cluster.spec import ENTRY, WorkerSpec
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import NoSlot
from tarragon_hpc.ids import Incarnation, Role

pytestmark = pytest.mark.timeout(90)

TASK = (sys.executable, str(Path(__file__).with_name("step_task.py")))
AW0, EW0, EW1, EW2, CS0 = (Incarnation(w, 1) for w in ("aw0", "ew0", "ew1", "ew2", "cs0"))
KEYS = {"gpus_per_node": 2, "slots_per_node": 1, "cpus_per_slot": 2}
CONFIG = load_config({"model": {"path": "m"}, "cluster": {"slurm": {"nodes": KEYS}}})


class Bench:
    """A launcher with a job of two nodes, or of a heterogeneous one, and what it has reported."""

    def __init__(self, run_dir, config, allocation, parts=None, **changes):
        names = [f"aw{n}" for n in range(2)] + [f"ew{n}" for n in range(4)] + ["cs0"]
        specs = {
            name: WorkerSpec(name, Role(name[:2]), None, {"MINE": name}, program=TASK)
            for name in names
        }
        self.specs = specs
        self.run_dir = run_dir
        self.exits = {}
        self.launcher = StepLauncher(
            allocation, parts or components(config), specs, run_dir, config.cluster.slurm,
            on_exit=self.exits.__setitem__, **changes,
        )  # fmt: skip

    async def told(self, who):
        """What the process of a worker says of itself."""
        path = log_path(self.run_dir, who)
        await until(path.exists)
        return json.loads(path.read_text())

    def detach(self):
        """Let everything go on, as the launcher of a head that ends; what waits for it."""
        sruns = contextlib.ExitStack()
        for step in self.launcher._workers.values():
            sruns.callback(step.process.wait)
        self.launcher.detach()
        return sruns

    async def exit(self, who):
        await until(lambda: who in self.exits)
        return self.exits[who]


async def until(condition, limit_s=20.0):
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def ours(steps):
    """Those that a launcher has started."""
    return [step for step in steps if step.name[:2] in ("aw", "ew", "cs", "sp")]


@pytest.fixture(scope="module")
def single(cluster):
    """A job of two nodes."""
    job = cluster.submit("sleep 600", "-N2", "--ntasks-per-node=1", "--cpus-per-task=4",
                         "--gres=gpu:2", "--no-kill", "--time=10")  # fmt: skip
    yield job
    cluster.cancel(job)


@pytest.fixture
def bench(cluster, monkeypatch, tmp_path):
    """A context that makes a Bench for a job."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))

    @contextlib.asynccontextmanager
    async def make(job, slurm=None, **changes):
        data = {
            "model": {"path": "m"},
            "cluster": {"slurm": {"nodes": KEYS, "warm_spares": False} | (slurm or {})},
        }
        config = load_config(data)
        run_dir = tmp_path / "run"
        if not run_dir.exists():
            create_run(config, run_dir)
        async with asyncio.timeout(20):
            while True:  # until the job runs
                try:
                    allocation = await find_allocation(run_dir, {"SLURM_JOB_ID": job})
                    break
                except Exception:  # noqa: BLE001 - it is pending
                    await asyncio.sleep(0.1)
        made = Bench(run_dir, config, allocation, **changes)
        try:
            yield made
        finally:
            await made.launcher.close()
        await until(lambda: not ours(cluster.steps(job)), 5)

    return make


def test_a_worker_is_a_step_with_a_slot_of_its_own(bench, single):
    async def scenario():
        async with bench(single) as b:
            b.launcher.start(AW0)
            b.launcher.start(EW0)
            b.launcher.start(CS0)
            aw, ew, cs = [await b.told(who) for who in (AW0, EW0, CS0)]
            assert aw["SLURM_JOB_ID"] == single
            assert aw["SLURMD_NODENAME"] != ew["SLURMD_NODENAME"]
            assert aw["MINE"] == "aw0"
            assert len(aw["CUDA_VISIBLE_DEVICES"].split(",")) == 1
            assert not cs["CUDA_VISIBLE_DEVICES"]
            assert "--parent" not in aw["argv"]
            with pytest.raises(NoSlot, match=r"ew1.1: all 2 slots for ew are in use"):
                b.launcher.start(EW1)
            assert not b.launcher.has_room("ew1")
            began = time.monotonic()
            b.launcher.kill(EW0)
            assert await b.exit(EW0) == "its step was cancelled"
            assert time.monotonic() - began < 2
            await until(lambda: b.launcher.has_room("ew1"))
            b.launcher.start(EW1)
            again = await b.told(EW1)
            assert again["SLURMD_NODENAME"] == ew["SLURMD_NODENAME"]

    asyncio.run(scenario())


def test_every_end_has_its_words(bench, single, cluster):
    async def scenario():
        async with bench(single) as b:
            b.launcher.start(EW0)
            b.launcher.start(EW1)
            first, second = await b.told(EW0), await b.told(EW1)
            os.kill(first["pid"], 9)
            assert await b.exit(EW0) == "killed by SIGKILL"
            cluster.cancel(f"{single}.{second['SLURM_STEP_ID']}")
            assert await b.exit(EW1) == "its step was cancelled"
            later = EW0._replace(number=2)
            b.launcher.start(later)
            await b.told(later)
            b.launcher.stop(later, 0.1)
            assert await b.exit(later) == "exit status 3"
            b.specs["ew2"] = WorkerSpec("ew2", Role.EW, None, program=("/no/such/program",))
            b.launcher.start(EW2)
            assert "could not be started on n" in await b.exit(EW2)
            assert "/no/such/program" in b.exits[EW2]
            assert b.launcher.slots.bad == {}
            await until(lambda: len(b.launcher.slots.idle) == 2)

    asyncio.run(scenario())


def test_an_srun_that_is_killed_leaves_nothing_behind(bench, single, cluster):
    async def scenario():
        async with bench(single) as b:
            b.launcher.start(EW0)
            told = await b.told(EW0)
            cluster.kill_srun("ew0.1")
            assert await b.exit(EW0) == "its srun was killed by SIGKILL"
            await until(lambda: told["pid"] not in processes.parents())
            # Only then is the slot somebody else's.
            await until(lambda: len(b.launcher.slots.idle) == 2)

    asyncio.run(scenario())


def test_the_next_head_takes_over_what_goes_on(bench, single):
    async def scenario():
        async with bench(single) as first:
            first.launcher.start(EW0)
            told = await first.told(EW0)
            step = f"{single}.{told['SLURM_STEP_ID']}"
            let_go = first.detach()
            await first.launcher.close()
            assert told["pid"] in processes.parents()
            async with bench(single) as second:
                assert not second.launcher.adopt(EW0, "999.0", told["SLURMD_NODENAME"])
                assert second.launcher.adopt(EW0, step, told["SLURMD_NODENAME"])
                (held,) = second.launcher.slots.held
                assert held.node == told["SLURMD_NODENAME"]
                second.launcher.kill(EW0)
                assert await second.exit(EW0) == "its step is gone"
                assert told["pid"] not in processes.parents()
                assert second.launcher.slots.held == {}
                let_go.close()

    asyncio.run(scenario())


def test_a_spare_becomes_a_worker_and_the_others_end_with_the_head(bench, single):
    async def scenario():
        parts = [replace(part, roles=frozenset({Role.EW})) for part in components(CONFIG)]
        async with bench(single, {"warm_spares": True}, parts=parts) as b:
            write_head(b.run_dir, HeadRecord("r", 1, "h", "127.0.0.1", 9, "", ""))
            b.specs["ew0"] = WorkerSpec("ew0", Role.EW, None, program=ENTRY)
            b.launcher._spares.look_soon()
            uses = lambda: [held.use for held in b.launcher.slots.held.values()]  # noqa: E731
            await until(lambda: uses() == [Use.WARM, Use.WARM], 40)
            b.launcher.start(EW0)
            assert sorted(uses()) == [Use.WARM, Use.WORKER]
            # It is a worker now, which finds no such model.
            assert await b.exit(EW0) == "exit status 2"
            assert "ew0.1 ERROR" in log_path(b.run_dir, EW0).read_text()

    asyncio.run(scenario())


def test_steps_in_a_heterogeneous_job(bench, cluster):
    parts = [
        ("-N1", "--cpus-per-task=2", "--time=10", "--no-kill"),
        ("-N1", "--cpus-per-task=2", "--gres=gpu:2", "--no-kill"),
        ("-N1", "--cpus-per-task=2", "--gres=gpu:2", "--no-kill"),
    ]
    flags = [flag for part in parts for flag in (*part, ":")][:-1]
    job = cluster.submit("sleep 600", *flags)
    keys = {"topology": "hetjob", "allow_fragile": True, "spares": 0}

    async def scenario():
        async with bench(job, keys) as b:
            for who in (AW0, EW0, CS0):
                b.launcher.start(who)
            aw, ew, cs = [await b.told(who) for who in (AW0, EW0, CS0)]
            assert {aw["SLURM_JOB_ID"], ew["SLURM_JOB_ID"], cs["SLURM_JOB_ID"]} == {job}
            assert len({t["SLURMD_NODENAME"] for t in (aw, ew, cs)}) == 3
            with pytest.raises(NoSlot):
                b.launcher.start(EW1)
            let_go = b.detach()
            assert b.launcher.adopt(EW0, f"{job}.{ew['SLURM_STEP_ID']}", ew["SLURMD_NODENAME"])
            assert b.launcher.adopt(AW0, "", aw["SLURMD_NODENAME"])
            assert b.launcher.adopt(CS0, "", cs["SLURMD_NODENAME"])
            b.launcher.kill(EW0)
            b.launcher.kill(AW0)
            assert await b.exit(EW0) == "its step is gone"
            await b.exit(AW0)
            assert not {aw["pid"], ew["pid"]} & set(processes.parents())
            b.launcher.kill(CS0)
            assert await b.exit(CS0) == "its step is gone"
            let_go.close()

    try:
        asyncio.run(scenario())
    finally:
        cluster.cancel(job)
