"""From rung to rung: slots, jobs, waiting, giving up. A head in this process, real jobs and steps,
workers without an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tarragon_hpc.cluster import launching
from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.rendezvous import create_run, read_head, run_secret
from tarragon_hpc.cluster.slurm import jobs
from tarragon_hpc.config import Config, load_config
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import connect
from tarragon_hpc.wire.to_client import Error
from tarragon_hpc.wire.to_head import ScaleRun
from tests.timeline import told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from slurm.testcluster.cluster import Cluster

FAKE = Path(__file__).parents[1] / "failover" / "fake_worker.py"
HOLD = "sleep 600"


def in_a_loop(test):
    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class Run:
    """A run whose head is in this process."""

    def __init__(self, path: Path, task: asyncio.Task[int], stop: asyncio.Event) -> None:
        self.path, self.task, self.stop = path, task, stop

    async def worker(self, name: str) -> dict[str, Any]:
        status = await query_status(self.path)
        return next(w for w in status["workers"] if w["id"] == name)

    async def until(self, name: str, limit_s: float = 20, /, **fields: Any) -> dict[str, Any]:
        """A worker's status once its fields are these."""
        async with asyncio.timeout(limit_s):
            while True:
                worker = await self.worker(name)
                if all(worker.get(key) == value for key, value in fields.items()):
                    return worker
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        """The head's exit status; raises what it raised."""
        async with asyncio.timeout(60):
            return await asyncio.shield(self.task)

    async def scale(self, role: str, count: int) -> None:
        record, secret = read_head(self.path), run_secret(self.path)
        client = await connect(record.control_host, record.control_port, secret, client_decoder())
        client.send(ScaleRun(role, count))
        reply = await anext(client.messages())
        assert not isinstance(reply, Error), reply
        await client.close()

    def told(self, event: str, worker: str | None = None) -> list[dict[str, Any]]:
        return told(self.path, event, worker)

    def own_jobs(self) -> dict[str, str]:
        """The jobs of workers: incarnations by job ids."""
        found = [job for job in jobs.jobs_of(self.path) if job.kind == jobs.WORKER]
        return {job.job: f"{job.worker}.{job.incarnation}" for job in found}


@pytest.fixture
def slurm(cluster, monkeypatch) -> Cluster:
    for name, value in cluster.environment.items():
        if name.startswith("SLURM_"):
            monkeypatch.setenv(name, value)
    yield cluster
    cluster.heal()


@pytest.fixture
def config(tiny_models, tmp_path) -> Callable[..., Config]:
    def make(topology: str, *overrides: str, **slurm: Any) -> Config:
        nodes = {"cpus_per_slot": 2, "partition": "gpu"}
        data = {
            "model": {"path": str(tiny_models("mixtral")), "served_name": "tiny"},
            "attention": {"workers": 2},
            "experts": {"workers": 2},
            "gateway": {"port": 0},
            "detection": {"heartbeat_ms": 50, "heartbeat_misses": 20},
            "cluster": {
                "backend": "slurm",
                "start_timeout_s": 60,
                "slurm": {"topology": topology, "nodes": nodes, "time": "10", **slurm},
            },
            "run": {"root": str(tmp_path / "runs")},
        }
        return load_config(data, overrides)

    return make


@pytest.fixture
def running(slurm, monkeypatch):
    """Runs, with a head in this process; nothing of them is left in Slurm's queue."""
    real = launching.plan_steps

    def plan(config: Config) -> list[Any]:
        program = (sys.executable, str(FAKE), "")
        return [dataclasses.replace(spec, program=program) for spec in real(config)]

    @contextlib.asynccontextmanager
    async def run(
        config: Config, *, scripted: bool = True, nodes: int = 0, serves: bool = True
    ) -> AsyncIterator[Run]:
        """scripted: without an engine. nodes: of the allocation. serves: wait until it does."""
        if scripted:
            monkeypatch.setattr(launching, "plan_steps", plan)
        path = create_run(config)
        if nodes:
            flags = (f"-N{nodes}", "--exclusive", "--no-kill", "--gres=gpu:2", "--time=10")
            job = slurm.submit(HOLD, *flags)
            jobs.record(path, jobs.Job(job, jobs.HEAD, time.time()))
            while slurm.state(job) != "RUNNING":
                await asyncio.sleep(0.1)
        ready: asyncio.Future[RunInfo] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = asyncio.create_task(
            run_service(config, run=path, on_ready=ready.set_result, stop=stop)
        )
        this = Run(path, task, stop)
        try:
            if serves:
                async with asyncio.timeout(250):
                    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    task.result()
            yield this
        finally:
            stop.set()
            done, _ = await asyncio.wait([task], timeout=60)
            assert done
        left = [job for job in this.own_jobs() if job in slurm.jobs()]
        assert [j for j in left if slurm.state(j) != "COMPLETING"] == []

    return run


@in_a_loop
async def test_a_pool_is_a_job_per_worker_also_of_those_that_come_later(running, slurm, config):
    pool = config("pool", "checkpoint.stores=1", head_nodes={"partition": "cpu"})
    async with running(pool) as run:
        names = sorted(run.own_jobs().values())
        assert names == ["aw0.1", "aw1.1", "cs0.1", "ew0.1", "ew1.1"]
        worker = await run.until("ew0", state="serving")
        assert slurm.state(worker["job"]) == "RUNNING"
        assert (await run.worker("cs0"))["node"] in ("n4", "n5")
        began = time.monotonic()
        slurm.kill_tasks(f"{worker['job']}.batch")
        again = await run.until("ew0", state="serving", incarnation=2)
        assert time.monotonic() - began < 12
        assert again["job"] != worker["job"]
        assert run.told("worker queued", "ew0")[0]["job"] == worker["job"]
        assert run.told("worker placed", "ew0")[1]["where"] == "job"
        await run.scale("aw", 3)
        added = (await run.until("aw2", 30, state="serving"))["job"]
        await run.scale("aw", 2)
        async with asyncio.timeout(20):
            while slurm.state(added) == "RUNNING":
                await asyncio.sleep(0.2)
        assert (await run.worker("aw1"))["state"] == "serving"
    assert run.task.result() == 0


@in_a_loop
async def test_without_a_slot_a_worker_gets_a_job_and_leaves_the_queue_for_a_slot(
    running, slurm, config
):
    """The allocation has four slots on two nodes; a fifth worker finds none. Its job cannot start
    either, as long as others have all the nodes.
    """
    nodes = {"cpus_per_slot": 2, "partition": "gpu", "gpus_per_node": 2}
    single = config("single", nodes=nodes, spares=0, warm_spares=False)
    async with running(single, nodes=2) as run:
        assert run.own_jobs() == {}
        others = slurm.submit("sleep 600", "-N2", "--exclusive", "--time=10", "-p", "gpu")
        while slurm.state(others) != "RUNNING":
            await asyncio.sleep(0.1)
        await run.scale("aw", 3)
        waits = await run.until("aw2", 30, state="queued", pending_reason="Resources")
        assert waits["job"] in run.own_jobs()
        assert "all 4 slots for aw are in use" in run.told("worker placed", "aw2")[0]["reason"]
        await run.scale("ew", 1)
        await run.until("aw2", 30, state="serving")


@in_a_loop
async def test_a_rejected_job_is_a_start_that_failed_in_slurms_words(running, config):
    async with running(config("pool", aw_nodes={"partition": "nowhere"}), serves=False) as run:
        with pytest.raises(ClusterError, match=r"aw[01] died during the start: .*nvalid partition"):
            await run.ended()


@in_a_loop
async def test_without_replacement_jobs_a_worker_waits_for_a_slot(running, config):
    nodes = {"cpus_per_slot": 2, "gpus_per_node": 2}
    slurm = {"nodes": nodes, "spares": 0, "warm_spares": False, "replacement_jobs": False}
    async with running(config("single", **slurm), nodes=2) as run:
        await run.scale("aw", 3)
        waits = await run.until("aw2", state="queued")
        assert waits["pending_reason"].startswith("all 4 slots for aw are in use, and ")
        assert "job" not in waits
        assert not run.own_jobs()
        await run.scale("ew", 1)
        await run.until("aw2", 30, state="serving", incarnation=1)


@in_a_loop
async def test_a_pool_without_hope_gives_its_nodes_back(running, slurm, config):
    """Both AWs die while others have taken all other nodes: their jobs wait, the EWs idle."""
    pool = config("pool", hopeless_s=3, aw_nodes={"partition": "cpu"}, nodes={"partition": "gpu"})
    async with running(pool) as run:
        slurm.drain("n4")
        slurm.drain("n5")
        for worker in (await run.worker("aw0"), await run.worker("aw1")):
            slurm.kill_tasks(f"{worker['job']}.batch")
        await run.until("aw0", state="queued")
        with pytest.raises(ClusterError, match="no attention worker serves for .* nothing is on"):
            await run.ended()
        assert run.told("stop began")[0]["failed"] is True


@in_a_loop
async def test_the_next_job_does_not_go_where_the_node_died(running, slurm, config):
    """Slurm does not know yet that the node is dead, and would start it there."""
    pool = config("pool", aw_nodes={"partition": "cpu"})
    async with running(pool) as run:
        worker = await run.worker("aw0")
        slurm.fail_node(worker["node"])
        again = await run.until("aw0", 30, state="serving", incarnation=2)
        assert again["node"] not in (worker["node"], None)
        await run.until("aw1", 30, state="serving")


@in_a_loop
async def test_a_worker_on_a_node_that_slurm_gives_up_is_fenced(running, slurm, config):
    """Its slurmd has died, but it lives, and so does its connection."""
    async with running(config("pool", aw_nodes={"partition": "cpu"})) as run:
        worker = await run.worker("aw0")
        slurm.kill_slurmd(worker["node"])
        # Slurm takes half a minute to give a node up, and is asked every ten seconds.
        again = await run.until("aw0", 120, state="serving", incarnation=2)
        assert again["before"].startswith("its node failed")
        assert again["node"] != worker["node"]
        async with asyncio.timeout(10):
            with contextlib.suppress(ProcessLookupError):
                while True:
                    os.kill(worker["pid"], 0)
                    await asyncio.sleep(0.05)
        assert run.told("node avoided")[0]["node"] == worker["node"]


@pytest.mark.vllm
@pytest.mark.timeout(600)
@in_a_loop
async def test_real_workers_of_a_pool_are_replaced_by_new_jobs(running, slurm, config):
    """An EW in the middle of a stream, then the AW: the tokens are what they were before."""
    patient = ["cluster.start_timeout_s=250", "gateway.failover_timeout_s=250"]
    small = ["attention.workers=1", "attention.threads=1", "attention.kv_cache=64MiB"]
    small += [
        "experts.threads=1",
        "experts.shadows=1",
        "transport.spin_us=0",
        "model.dtype=float32",
    ]
    pool = config("pool", *patient, *small, nodes={"cpus_per_slot": 2, "partition": "gpu"})
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 60, "temperature": 0}

    async with running(pool, scripted=False) as run:
        endpoint = (await query_status(run.path))["endpoint"]
        async with httpx.AsyncClient(base_url=endpoint, timeout=240) as client:

            async def answer() -> str:
                reply = await client.post("/completions", json={**body, "ignore_eos": True})
                assert reply.status_code == 200, reply.text
                return reply.json()["choices"][0]["text"]

            expected = await answer()
            for name in ("ew0", "aw0"):
                asked = asyncio.create_task(answer())
                await asyncio.sleep(0.3)
                slurm.kill_tasks(f"{(await run.worker(name))['job']}.batch")
                assert await asked == expected
                await run.until(name, 200, state="serving", incarnation=2)
                assert await answer() == expected
        lost = run.told("worker lost", "ew0")[0]["mono"]
        back = [e for e in run.told("table published") if e["mono"] > lost][-1]["mono"]
        assert back - lost < 12
