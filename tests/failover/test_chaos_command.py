"""`tarragon chaos` and `tarragon scale` from outside, in a service without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys

import pytest


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
            assert 0 < failure["seconds"]["detected"] < 0.05
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
