"""The end of a job that is not the end of its run: the time limit, preemption."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal
from tarragon_hpc.orchestrator.state import RunPhase

LONG = {"model": "tiny", "prompt": [5, 6], "max_tokens": 400}


async def read(service, body) -> list[str]:
    """The lines of a stream."""
    async with service.http.stream("POST", "/completions", json=body) as reply:
        return [line async for line in reply.aiter_lines() if line]


def final(run_dir):
    return replay(entry.event for entry in read_journal(run_dir / "journal.jsonl"))


def test_near_the_time_limit_what_is_short_is_finished_and_the_rest_told_to_come_back(
    make_config, serving
):
    async def scenario() -> None:
        async with serving(make_config(cluster={"drain_timeout_s": 0.5})) as service:
            plain = asyncio.create_task(service.http.post("/completions", json=LONG))
            stream = asyncio.create_task(read(service, LONG | {"stream": True}))
            kept = asyncio.create_task(read(service, LONG | {"stream": True, "resumable": True}))
            short = asyncio.create_task(service.complete(60))
            await service.until(lambda s: s["requests"]["running"] == 4)
            os.kill(os.getpid(), signal.SIGUSR2)
            await service.until(lambda s: s["state"] == "draining")
            refused = await service.complete(1)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "15")
            assert refused.json()["error"]["code"] == "handover"
            assert "the job's time limit is near; come back later" in refused.text
            assert (await short).status_code == 200
            cut = await plain
            assert (cut.status_code, cut.json()["error"]["code"]) == (503, "handover")
            assert "ask again: the service goes on after that" in cut.text
            lines = await stream
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "handover"
            lines = await kept
            assert lines[-2].startswith("data: ")  # of the last event that has a number
            error = json.loads(lines[-1].removeprefix("data: "))["error"]
            assert error["code"] == "handover"
            assert "come back to it: the service goes on after that" in error["message"]
            numbers = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id:")]
            assert numbers == list(range(1, len(numbers) + 1))
            assert await service.task == 0
            (began,) = [e for e in service.timeline() if e["event"] == "handover began"]
            assert began["reason"] == "the job's time limit is near"
        state = final(service.info.run_dir)
        assert (state.phase, state.handover, state.failed) == (RunPhase.ENDED, True, False)

    asyncio.run(scenario())


@pytest.mark.parametrize("save", [True, False])
def test_the_stores_save_what_the_next_head_goes_on_with_and_only_that(make_config, serving, save):
    async def scenario():
        checkpoint = {"stores": 2, "memory": "1MiB", "save_at_handover": save}
        config = make_config(checkpoint=checkpoint, cluster={"drain_timeout_s": 0.1})
        async with serving(config) as service:
            for more in ({}, {"resumable": True, "n": 2}):
                asyncio.create_task(read(service, LONG | {"stream": True} | more))
            await service.until(lambda s: s["requests"]["running"] == 3)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert await asyncio.wait_for(service.task, 20) == 0
        return [e for e in service.timeline() if e["event"] == "kv saved"]

    saved = asyncio.run(scenario())
    assert {e["worker"] for e in saved} == ({"cs0", "cs1"} if save else set())
    for line in saved:
        # Attempts of the next head, the second, begin with 2 << 20.
        assert (line["requests"], line["tokens"]) == (2, (2 << 20) - 1)
        assert line["problem"] == "as it was told"


def test_an_ordinary_stop_is_no_handover(make_config, serving):
    async def scenario():
        async with serving(make_config()) as service:
            pass
        return service

    service = asyncio.run(scenario())
    assert not final(service.info.run_dir).handover
    assert not [e for e in service.timeline() if e["event"] == "handover began"]


@pytest.mark.parametrize("name", ["aw0", "ew0", "cs0"])
def test_one_worker_that_is_given_notice_is_moved(make_config, serving, name):
    async def scenario() -> None:
        config = make_config(checkpoint={"stores": 2, "memory": "1MiB"})
        async with serving(config) as service:
            running = [asyncio.create_task(service.complete(300)) for _ in range(4)]
            await service.until(lambda s: s["requests"]["tokens"] > 8)
            os.kill((await service.worker(name))["pid"], signal.SIGUSR1)
            await service.until(
                lambda s: any(
                    w["id"] == name and w["incarnation"] == 2 and w["state"] == "serving"
                    for w in s["workers"]
                )
            )
            answers = await asyncio.gather(*running)
            assert [a.json()["usage"]["completion_tokens"] for a in answers] == [300] * 4
            told = service.told(name)
            assert "worker given notice" in told
            assert "worker lost" not in told
            assert told.index("worker given notice") < told.index("worker stopped")
            await service.until(lambda s: s["state"] == "serving")

    asyncio.run(scenario())


def test_when_all_workers_are_given_notice_the_run_is_handed_over(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            running = asyncio.create_task(service.http.post("/completions", json=LONG))
            await service.until(lambda s: s["requests"]["tokens"])
            for worker in (await service.status())["workers"]:
                os.kill(worker["pid"], signal.SIGUSR1)
            answer = await running
            assert answer.json()["error"]["code"] == "handover"
            assert await asyncio.wait_for(service.task, 10) == 0
            (began,) = [e for e in service.timeline() if e["event"] == "handover began"]
            assert "4 of 4 workers were given notice (SIGUSR1)" in began["reason"]
            assert began["drain_s"] == 2.0
        assert final(service.info.run_dir).handover

    asyncio.run(scenario())
