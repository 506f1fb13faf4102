"""`tarragon chaos` and `tarragon scale` from outside, in a service without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tarragon_hpc.bench.injection import inject
from tarragon_hpc.bench.load import Load, Prompt


async def tarragon(*arguments):
    command = [sys.executable, "-m", "tarragon_hpc.cli", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60
    )


def test_a_killed_worker_is_in_the_timeline_and_in_the_chaos_file(serving, make_config):
    async def scenario():
        async with serving(make_config()) as service:
            run_dir = service.info.run_dir
            pid = (await service.worker("ew1"))["pid"]
            done = await tarragon("chaos", str(run_dir), "kill", "ew1")
            assert done.returncode == 0, done.stderr
            assert f"kill ew1.1 (pid {pid})" in done.stdout
            record = json.loads((run_dir / "chaos.jsonl").read_text())
            assert (record["worker"], record["fault"], record["pid"]) == ("ew1", "kill", pid)
            notes = [e for e in service.timeline() if e["event"] == "chaos: kill"]
            assert [(e["worker"], e["incarnation"]) for e in notes] == [("ew1", 1)]
            (failure,) = (await service.status())["failures"]
            assert (failure["worker"], failure["incarnation"]) == ("ew1", 1)
            assert failure["fault"] == "kill"
            assert -0.005 < failure["seconds"]["detected"] < 0.05  # clocks of two processes
            metrics = (await service.http.get("../metrics")).text
            assert 'tarragon_failover_seconds_count{phase="detected"} 1.0' in metrics
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                pytest.fail("it still runs")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chaos", "RUN", "kill", "ew9"], "error: WORKER: 'ew9' is not one of aw0, aw1, ew0, ew1"),
        (["scale", "RUN", "ew=0"], "error: ew=0: must be a number of workers, 1 or more"),
    ],
)
def test_refusals_are_one_line(serving, make_config, arguments, message):
    async def scenario():
        async with serving(make_config()) as service:
            named = [str(service.info.run_dir) if a == "RUN" else a for a in arguments]
            done = await tarragon(*named)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == message + "\n"
            assert not (service.info.run_dir / "chaos.jsonl").exists()

    asyncio.run(scenario())


def test_a_run_that_is_over_is_refused(serving, make_config):
    async def scenario():
        async with serving(make_config()) as service:
            run_dir = service.info.run_dir
        return run_dir, await tarragon("chaos", str(run_dir), "--mtbf", "1")

    run_dir, done = asyncio.run(scenario())
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: RUN: {run_dir.name} is not running (ended")


def test_random_slowdowns_end_when_they_are_interrupted(serving, make_config):
    async def scenario():
        async with serving(make_config()) as service:
            run_dir = service.info.run_dir
            pids = [(await service.worker(f"ew{i}"))["pid"] for i in range(2)]
            options = ["--mtbf", "0.1", "--faults", "slow", "--seed", "4", "--factor", "50"]
            chaos = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tarragon_hpc.cli", "chaos", str(run_dir), *options,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            lines = [(await chaos.stdout.readline()).decode() for _ in range(3)]
            chaos.send_signal(signal.SIGTERM)
            assert await chaos.wait() == 130
            assert all(" slow ew" in line for line in lines)
            records = [json.loads(x) for x in (run_dir / "chaos.jsonl").read_text().splitlines()]
            assert all(r["seed"] == 4 and r["pid"] in pids for r in records)
            for pid in pids:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                assert state != "T"
            assert (await service.complete(3)).status_code == 200

    asyncio.run(scenario())


def injected(run_dir, fault, patience_s):
    return inject(
        run_dir, role="ew", faults=[fault], count=1, rng=random.Random(1), seed=1, say=print,
        patience_s=patience_s,
    )  # fmt: skip


def test_a_stop_under_load(serving, make_config):
    async def scenario():
        async with serving(make_config()) as service:
            load = Load(service.info.endpoint, [Prompt([5, 6], 20)], 2)
            running = asyncio.create_task(load.run())
            found = await injected(service.info.run_dir, "stop", 20.0)
            load.end()
            await running
            return found, load.all

    found, streams = asyncio.run(scenario())
    assert found.problem is None
    (injection,) = found.all
    assert injection.fault == "stop"
    assert injection.at < injection.over_at
    assert "back" in injection.story["seconds"]
    assert len(streams) > 2
    assert all(s.done and len(s.times) == 20 for s in streams)


def test_injection_ends_when_the_service_does_not_get_whole(serving, make_config):
    async def scenario():
        config = make_config(cluster={"max_restarts": 0, "drain_timeout_s": 1})
        async with serving(config) as service:
            return await injected(service.info.run_dir, "kill", 0.5)

    found = asyncio.run(scenario())
    assert found.all == []
    assert "the service was not whole 0.5 s after ew" in found.problem
