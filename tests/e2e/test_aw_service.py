"""Attention workers die, stop, leave and join, and clients notice nothing, whatever they asked for.

One service for all of it.
"""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tarragon_hpc.bench.injection import is_whole
from tests.e2e.answers import Answer, ask, ask_streaming
from tests.e2e.crowd import Crowd, start
from tests.e2e.questions import HALF, questions, sensible
from tests.e2e.rounds import killed_attention_workers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(tiny_models, tmp_path_factory):
    """Three AWs that are given time when they are stopped; (service, vocabulary)."""
    context, vocab = start(
        tiny_models,
        tmp_path_factory.mktemp("service"),
        "mixtral",
        attention={"workers": 3, "prefix_caching": False},
        experts={"workers": 2, "shadows": 1},
        checkpoint={"stores": 1, "restore": "always", "memory": "64MiB"},
        detection={"stopped_grace_s": 30},
    )
    with context as running:
        yield running, vocab


def test_killed_attention_workers_change_no_token(service):
    killed_attention_workers(*service, "mixtral", chunks=True)


@pytest.fixture(scope="module")
def people(service):
    """Nine who talk for a while."""
    return Crowd(*service, lengths=[60] * 9, new_tokens=300)


def test_a_stopped_attention_worker_is_left_alone(people):
    mark = people.mark()
    with people.victim("aw1") as victim, people.busy():
        people.until(lambda s: s["requests"]["running_on"]["aw1"] >= 2)
        try:
            victim.signal("stop")
            people.until(lambda _: people.since(mark, "requests moved"))
            people.until(lambda _: people.since(mark, "request resumed"))
        finally:
            victim.signal("cont")
        # It takes new ones again; what it says of the old ones is not listened to.
        people.until(is_whole)
        people.until(lambda s: s["requests"]["running_on"]["aw1"] >= 1)
    assert people.worker("aw1")["incarnation"] == victim.target.incarnation
    moved = people.since(mark, "requests moved")
    assert {line["worker"] for line in moved} == {"aw1"}
    assert all("silent" in line["reason"] for line in moved)
    resumed = people.since(mark, "request resumed")
    assert len(resumed) >= 2
    assert "aw1" not in {line["worker"] for line in resumed}
    assert people.status()["requests"]["ended"].get("failed", 0) == 0


def test_fewer_and_more_attention_workers(people):
    mark = people.mark()
    people.whole()
    with people.busy():
        people.until(lambda s: s["requests"]["running"] == 9)
        people.scale("aw", 1)
        people.until(lambda s: [w["id"] for w in s["workers"] if w["role"] == "aw"] == ["aw0"])
        moved = people.since(mark, "requests moved")
        assert {line["worker"] for line in moved} == {"aw1", "aw2"}
        assert not people.since(mark, "worker lost")
        people.until(lambda s: s["requests"]["running_on"] == {"aw0": 9})
        people.scale("aw", 3)
        people.until(lambda s: is_whole(s) and len(s["requests"]["running_on"]) == 3, 60)
        people.until(lambda s: min(s["requests"]["running_on"].values()) >= 1)
    resumed = people.since(mark, "request resumed")
    assert resumed
    assert all(line["restored"] > 0 for line in resumed)
    assert people.status()["requests"]["ended"].get("failed", 0) == 0


def test_whole_requests(people):
    async def everything() -> None:
        async with httpx.AsyncClient(base_url=people.service.endpoint, timeout=120) as client:
            pieces: list[str] = []
            plain = questions("?")["plain"]
            whole = await ask_streaming(client, *plain, lambda a: pieces.append(a.choices[0].text))
            # Several tokens, so that some have come and some have not when the AW dies.
            half = whole.choices[0].text[len(pieces[HALF - 6]) : len(pieces[HALF + 6])]
            asked = questions(half)
            answers = await asyncio.gather(*(ask(client, *question) for question in asked.values()))
            expected = dict(zip(asked, answers, strict=True))
            sensible(expected)

            kill = people.kill_all("aw0", "aw1", pauses=[0.2])
            killing: list[asyncio.Task[None]] = []

            def look(answer: Answer) -> None:
                if len(answer.choices[0].token_ids) >= HALF and not killing:
                    killing.append(asyncio.create_task(kill()))

            async def once(name: str, streaming: bool) -> None:
                if not streaming:
                    answer = await ask(client, *asked[name])
                elif name == "plain":
                    answer = await ask_streaming(client, *asked[name], look)
                else:
                    answer = await ask_streaming(client, *asked[name])
                answer.check(expected[name])

            mark = people.mark()
            await asyncio.gather(*(once(name, how) for name in asked for how in (True, False)))
            await asyncio.gather(*killing)
            # More than half of the sequences (of three AWs two were killed).
            assert len(people.since(mark, "request resumed")) > len(asked)

    asyncio.run(everything())
    status = people.whole()
    assert status["requests"]["ended"].get("failed", 0) == 0


def test_a_client_comes_back_to_its_stream(service):
    people = Crowd(*service, lengths=[20], new_tokens=600)
    ids: list[int] = []
    tokens: list[int] = []
    last = ""

    def take(answer: httpx.Response, enough: int) -> None:
        nonlocal last
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("id: "):
                ids.append(int(line.removeprefix("id: ")))
            elif line.startswith("data: "):
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    tokens.extend(json.loads(last)["choices"][0]["token_ids"])
            elif not line and len(ids) >= enough:
                return

    body = {
        "prompt": people.prompts[0],
        "max_tokens": len(people.expected[0]),
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "resumable": True,
    }
    people.whole()
    mark = people.mark()
    with httpx.Client(base_url=people.service.endpoint, timeout=60) as client:
        with client.stream("POST", "completions", json=body) as answer:
            name = answer.headers["x-request-id"]
            take(answer, enough=20)
        # Nobody listens now.
        running_on = people.status()["requests"]["running_on"]
        (worker,) = [name for name, running in running_on.items() if running]
        people.kill(worker)()
        people.until(lambda _: people.since(mark, "request resumed"))
        path = f"requests/{name}/stream"
        with client.stream("GET", path, params={"after": ids[-1]}) as answer:
            take(answer, enough=1 << 30)
    assert ids == list(range(1, len(ids) + 1))
    assert tokens == people.expected[0]
    assert last == "[DONE]"
