"""The death, stop or departure of an AW: who goes on with its requests, and how that is told."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tarragon_hpc.observe.story_words import in_words


async def busy(service, requests: int = 4, tokens: int = 300) -> list[asyncio.Task]:
    """So many requests, all of which have begun to run."""
    running = [asyncio.create_task(service.complete(tokens)) for _ in range(requests)]
    await service.until(lambda s: sum(s["requests"]["running_on"].values()) == requests)
    await service.until(lambda s: s["requests"]["tokens"] > 8)
    return running


async def whole(running: list[asyncio.Task], tokens: int = 300) -> None:
    """All of them end well, with every token."""
    for answer in await asyncio.gather(*running):
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == tokens


async def hit(service, worker: str, number: int) -> None:
    os.kill((await service.worker(worker))["pid"], number)


@pytest.mark.parametrize("stores", [0, 1])
def test_a_killed_aw_costs_no_request_and_its_story_is_told(make_config, serving, stores):
    async def scenario() -> None:
        async with serving(make_config(checkpoint={"stores": stores})) as service:
            running = await busy(service)
            await hit(service, "aw1", signal.SIGKILL)
            await whole(running)
            await service.until(lambda s: s["failures"] and s["failures"][-1]["over"])
            (story,) = (await service.status())["failures"]
            assert (story["worker"], story["incarnation"], story["by"]) == ("aw1", 1, "head")
            at, moved = story["seconds"], story["moved"]
            assert at["detected"] <= at["moved"] <= at["resumed"] <= at["resumed_last"]
            assert at["moved"] < 0.1
            assert at["resumed_last"] < at["restored"]
            assert (moved["requests"], moved["resumed"], moved["waiting"]) == (2, 2, 0)
            if stores:
                assert (moved["computed"], moved["nbytes"]) == (2, 64 * moved["restored"])
            else:
                assert (moved["restored"], moved["nbytes"]) == (0, 0)
                assert moved["computed"] > 4
            assert "2 moved, 2 resumed: " in in_words(story)
            metrics = (await service.http.get(service.info.endpoint[:-3] + "/metrics")).text
            assert 'tarragon_failover_seconds_count{phase="moved"} 1.0' in metrics
            assert 'tarragon_failover_seconds_count{phase="resumed"} 2.0' in metrics

    asyncio.run(scenario())


def test_requests_of_the_only_aw_wait_for_its_replacement(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(attention={"workers": 1})) as service:
            running = await busy(service, 2)
            await hit(service, "aw0", signal.SIGKILL)
            await whole(running)
            (story,) = (await service.status())["failures"]
            assert story["moved"]["waiting"] == 2
            assert story["seconds"]["restored"] < story["seconds"]["resumed"]
            resumed = [e for e in service.timeline() if e["event"] == "request resumed"]
            assert {(e["worker"], e["incarnation"], e["left"]) for e in resumed} == {
                ("aw0", 2, "aw0.1")
            }

    asyncio.run(scenario())


def test_the_only_aw_is_replaced_even_while_the_run_drains(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(attention={"workers": 1})) as service:
            running = await busy(service, 2)
            service.stop.set()
            await service.until(lambda s: s["state"] == "draining")
            await hit(service, "aw0", signal.SIGKILL)
            await whole(running)

    asyncio.run(scenario())


def test_others_go_on_with_what_a_stopped_aw_ran_and_its_late_tokens_change_nothing(
    make_config, serving
):
    async def scenario() -> None:
        detection = {"heartbeat_misses": 8, "stopped_grace_s": 30}
        async with serving(make_config(detection=detection)) as service:
            running = await busy(service)
            await hit(service, "aw1", signal.SIGSTOP)
            await service.until(lambda s: s["failures"] and s["failures"][0]["moved"]["resumed"])
            assert (await service.worker("aw1"))["state"] == "unresponsive"
            await hit(service, "aw1", signal.SIGCONT)
            await whole(running)
            await service.until(lambda s: s["state"] == "serving")
            (story,) = (await service.status())["failures"]
            assert (story["how"], story["over"]) == ("no heartbeats", True)
            assert (story["moved"]["requests"], story["moved"]["resumed"]) == (2, 2)
            assert "back" in story["seconds"]
            await whole(await busy(service, 4, 20), 20)

    asyncio.run(scenario())


def test_an_aw_that_is_scaled_away_hands_over_and_that_is_no_failure(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            running = await busy(service)
            assert await service.scale("aw", 1) is None
            await service.until(lambda s: len(s["workers"]) == 3)
            assert not any(task.done() for task in running)
            await whole(running)
            assert (await service.status())["failures"] == []
            moved = [e for e in service.timeline() if e["event"] == "requests moved"]
            assert [(e["worker"], e["count"], e["waiting"]) for e in moved] == [("aw1", 2, 0)]

    asyncio.run(scenario())
