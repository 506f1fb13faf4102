"""Checkpoint stores come and go, with real processes: AWs know exactly those that serve, nothing is
turned away, and what is not protected meanwhile is said.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from tarragon_hpc.cli.scale import coverage
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal

TWO = {"stores": 2}


async def kill(service, worker: str, number: int = signal.SIGKILL) -> None:
    os.kill((await service.worker(worker))["pid"], number)


def known(*stores: str):
    """Everything serves, and every AW was told of exactly these stores, and has heard it."""

    def check(status: dict[str, Any]) -> bool:
        aws = [w for w in status["workers"] if w["role"] == "aw"]
        heard = {w["stats"].get("stores") for w in aws}
        told = [sorted(w["stores"]) for w in aws]
        return (
            status["state"] == "serving"
            and told == [list(stores)] * len(aws)
            and heard == {len(stores)}
        )

    return check


def test_a_run_with_stores_serves_and_says_what_is_protected(make_config, serving, capsys):
    async def scenario() -> None:
        async with serving(make_config(checkpoint=TWO)) as service:
            for worker in ("aw0", "aw1"):
                told = service.told(worker)
                assert "stores told" in told
                assert told.index("stores told") < told.index("table sent")
                last = len(told) - 1 - told[::-1].index("stores told")
                assert last < told.index("table taken")
            await service.until(known("cs0.1", "cs1.1"))
            running = asyncio.create_task(service.complete(100))
            await service.until(lambda s: s["checkpoint"]["protected"] == 1)
            checkpoint = (await service.status())["checkpoint"]
            assert (checkpoint["stores"], checkpoint["wanted"], checkpoint["requests"]) == (2, 2, 1)
            assert (checkpoint["used_bytes"], checkpoint["capacity_bytes"]) == (2 << 20, 2 << 30)
            assert checkpoint["unprotected"] == ""
            assert (await running).status_code == 200
            run_dir = service.info.run_dir
            await asyncio.to_thread(coverage, str(run_dir), None, as_json=False)
            assert "restored from checkpoint stores; about one token" in capsys.readouterr().out

    asyncio.run(scenario())


def test_a_killed_store_is_left_out_replaced_and_used_again(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(checkpoint=TWO)) as service:
            running = [asyncio.create_task(service.complete(200)) for _ in range(4)]
            await service.until(lambda s: s["requests"]["tokens"] > 4)
            await kill(service, "cs1")
            await service.until(known("cs0.1", "cs1.2"))
            assert [a.status_code for a in await asyncio.gather(*running)] == [200] * 4
            (story,) = (await service.status())["failures"]
            assert (story["worker"], story["incarnation"], story["over"]) == ("cs1", 1, True)
            assert {"detected", "told", "started", "ready", "restored"} <= story["seconds"].keys()
            assert story["seconds"]["told"] < 0.5
            told = [e["stores"] for e in service.timeline() if e["event"] == "stores told"]
            assert told[-4:] == ["cs0.1", "cs0.1", "cs0.1 cs1.2", "cs0.1 cs1.2"]

    asyncio.run(scenario())


def test_the_last_store_is_given_up_and_the_run_goes_on_without_any(make_config, serving):
    async def scenario() -> None:
        config = make_config(checkpoint={"stores": 1}, cluster={"max_restarts": 0})
        async with serving(config) as service:
            running = asyncio.create_task(service.complete(300))
            await service.until(lambda s: s["checkpoint"]["protected"] == 1)
            await kill(service, "cs0")
            await service.until(lambda s: "cs0 given up after 0 restarts" in s["reason"])
            await service.until(lambda s: s["checkpoint"]["protected"] == 0)
            status = await service.status()
            assert status["state"] == "degraded"
            assert status["requests"]["serving"]
            assert status["checkpoint"]["unprotected"].startswith("everything: no checkpoint store")
            assert (await running).status_code == 200
            assert (await service.complete(2)).status_code == 200

    asyncio.run(scenario())


def test_a_stopped_store_stays_known_until_it_is_condemned(make_config, serving):
    async def scenario() -> None:
        detection = {"heartbeat_misses": 10, "stopped_grace_s": 0.5}
        async with serving(make_config(checkpoint=TWO, detection=detection)) as service:
            await service.until(known("cs0.1", "cs1.1"))
            await kill(service, "cs0", signal.SIGSTOP)
            await service.until(lambda s: "cs0 unresponsive" in s["reason"])
            assert (await service.worker("aw0"))["stores"] == ["cs0.1", "cs1.1"]
            await service.until(known("cs0.2", "cs1.1"))
            told = service.told("cs0")
            for event in ("worker silent", "worker lost", "worker fenced", "worker started"):
                told = told[told.index(event) :]

    asyncio.run(scenario())


def test_stores_are_scaled_and_those_that_leave_are_told_of_first(make_config, serving):
    async def scenario() -> None:
        config = make_config(checkpoint={"stores": 2, "replicas": 2})
        async with serving(config) as service:
            assert "checkpoint.replicas is 2" in (await service.scale("cs", 1) or "")
            assert await service.scale("cs", 3) is None
            await service.until(known("cs0.1", "cs1.1", "cs2.1"))
            running = asyncio.create_task(service.complete(100))
            assert await service.scale("cs", 0) is None
            await service.until(known())
            await service.until(lambda s: len(s["workers"]) == 4)
            left = ["worker told to stop", "worker leaving", "worker stopped", "worker removed"]
            assert [e for e in service.told("cs2") if e in left] == left
            without = [e["mono"] for e in service.timeline() if e.get("stores") == ""]
            stopped = [e["mono"] for e in service.timeline() if e["event"] == "worker told to stop"]
            assert max(without) <= min(stopped)
            assert (await service.status())["checkpoint"]["lines"] == []
            assert await service.scale("cs", 2) is None
            await service.until(known("cs0.2", "cs1.2"))
            assert (await running).status_code == 200
        state = replay(e.event for e in read_journal(service.info.run_dir / "journal.jsonl"))
        assert list(state.workers) == ["aw0", "aw1", "ew0", "ew1", "cs0", "cs1"]

    asyncio.run(scenario())
