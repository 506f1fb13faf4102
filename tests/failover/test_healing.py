"""A worker is lost and the run heals by itself, or ends in a clear state; with real processes."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal


async def kill(service, worker: str, number: int = signal.SIGKILL) -> None:
    os.kill((await service.worker(worker))["pid"], number)


def healed(worker: str, incarnation: int = 2):
    """Everything serves, and this worker in this incarnation."""

    def check(status) -> bool:
        found = next(w for w in status["workers"] if w["id"] == worker)
        states = {status["state"], found["state"]}
        return states == {"serving"} and found["incarnation"] == incarnation

    return check


def test_a_killed_ew_is_routed_around_replaced_and_routed_to_again(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(experts={"workers": 2, "shadows": 1})) as service:
            before = (await service.worker("ew1"))["pid"]
            running = [asyncio.create_task(service.complete(100)) for _ in range(4)]
            await service.until(lambda s: s["requests"]["tokens"] > 4)
            await kill(service, "ew1")
            await service.until(healed("ew1"))
            answers = await asyncio.gather(*running)
            assert [a.status_code for a in answers] == [200] * 4
            ew1 = await service.worker("ew1")
            assert ew1["pid"] != before
            assert (ew1["restarts"], ew1["before"]) == (1, "killed by SIGKILL")
            assert len(ew1["holds"]) == 8
            status = await service.status()
            assert (status["epoch"], status["coverage"]["masked_single"]) == (3, ["ew0", "ew1"])
            story = service.timeline()
            tables = [e for e in story if e["event"] == "table published"]
            assert [(e["short"], e["missing"]) for e in tables] == [(0, 0), (8, 0), (0, 0)]
            events = [e["event"] for e in story[story.index(tables[1]) - 3 :]]
            assert events.index("worker lost") < events.index("table published")
            assert events.index("table published") < events.index("worker started")

    asyncio.run(scenario())


@pytest.mark.parametrize("on_missing", ["load", "wait", "mask"])
def test_experts_without_holder_are_loaded_elsewhere_or_come_back(make_config, serving, on_missing):
    async def scenario() -> None:
        async with serving(make_config(experts={"on_missing": on_missing})) as service:
            await kill(service, "ew1")
            await service.until(lambda s: s["state"] == "degraded")
            assert (await service.complete(2)).status_code == 200  # nothing is turned away
            await service.until(healed("ew1"))
            await service.until(
                lambda s: [len(w["holds"]) for w in s["workers"] if w["role"] == "ew"] == [4, 4]
            )
            loads = [e for e in service.timeline() if e["event"] == "load asked"]
            if on_missing == "load":
                await service.until(lambda _: service.told("ew0")[-1] == "experts held")
                assert service.told("ew0")[-4:] == [
                    "load asked",
                    "experts held",
                    "unload asked",
                    "experts held",
                ]
                assert (loads[0]["experts"], loads[0]["worker"]) == ("1,3,5,7", "ew0")
            else:
                assert loads == []
        entries = read_journal(service.info.run_dir / "journal.jsonl")
        assert replay(e.event for e in entries).failed is False

    asyncio.run(scenario())


def test_a_load_that_fails_is_said_and_the_replacement_heals(make_config, serving, fake_workers):
    fake_workers("unable=ew0")

    async def scenario() -> None:
        async with serving(make_config()) as service:
            await kill(service, "ew1")
            await service.until(healed("ew1"))
            held = [e for e in service.timeline() if e["event"] == "experts held"]
            assert {e["error"] for e in held} == {"no such file"}

    asyncio.run(scenario())


def test_a_killed_aw_is_replaced_and_takes_requests_again(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(attention={"workers": 1})) as service:
            await kill(service, "aw0")
            await service.until(lambda s: s["state"] == "unavailable")
            refused = await service.complete(2)
            assert refused.status_code == 503
            assert "no attention worker serves: aw0" in refused.json()["error"]["message"]
            await service.until(healed("aw0"))
            assert (await service.complete(2)).status_code == 200

    asyncio.run(scenario())


def test_a_stopped_worker_is_killed_and_replaced_after_a_while(make_config, serving):
    async def scenario() -> None:
        detection = {"heartbeat_misses": 10, "stopped_grace_s": 0.5}
        async with serving(make_config(detection=detection)) as service:
            pid = (await service.worker("ew0"))["pid"]
            await kill(service, "ew0", signal.SIGSTOP)
            await service.until(healed("ew0"))
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            told = service.told("ew0")
            for event in ("worker silent", "worker lost", "worker fenced", "worker started"):
                told = told[told.index(event) :]
            # Its replacement does not wait for the exit: nothing of it can count any more.
            before = (await service.worker("ew0"))["before"]
            assert before in ("unresponsive for 0.5 s", "killed by SIGKILL")

    asyncio.run(scenario())


def test_a_crash_loop_ends_in_a_clear_state_and_others_take_over(
    make_config, serving, fake_workers
):
    fake_workers("crash-again=ew1")

    async def scenario() -> None:
        config = make_config(cluster={"max_restarts": 2}, experts={"on_missing": "wait"})
        async with serving(config) as service:
            await kill(service, "ew1")
            await service.until(lambda s: "ew1 given up after 2 restarts in" in s["reason"])
            await service.until(lambda s: not s["coverage"]["missing"])
            status = await service.status()
            assert status["state"] == "degraded"
            ew1 = await service.worker("ew1")
            assert (ew1["state"], ew1["incarnation"], ew1["experts"]) == ("dead", 3, [])
            assert ew1["reason"].endswith(": exit status 9")
            assert (await service.worker("ew0"))["holds"] == list(range(8))
            assert (await service.complete(2)).status_code == 200
            assert service.told("ew1").count("worker started") == 3

    asyncio.run(scenario())
