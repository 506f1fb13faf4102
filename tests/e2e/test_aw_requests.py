"""Attention workers die: what clients asked for besides tokens is what it would have been."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.e2e.answers import Answer, ask, ask_streaming
from tests.e2e.crowd import Crowd, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PROMPT = "Once upon a time there was a little house by the water"
TALK = [{"role": "user", "content": "Tell me about the water"}]
COLOURS = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 16}
SCHEMA = {
    "type": "object",
    "properties": {"colours": COLOURS},
    "required": ["colours"],
    "additionalProperties": False,
}
COMPLETION, CHAT = "completions", "chat/completions"
TOKENS = 96
HALF = 48


@pytest.fixture(scope="module")
def people(tiny_models, tmp_path_factory):
    service, vocab = start(
        tiny_models,
        tmp_path_factory.mktemp("requests"),
        "mixtral",
        attention={"workers": 3},
        experts={"workers": 2, "shadows": 1},
        checkpoint={"stores": 1, "restore": "always", "memory": "64MiB"},
    )
    with service as running:
        yield Crowd(running, vocab, lengths=[20], new_tokens=1500)


def questions(half: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """name → (path, body). half: what the plain one generates around its middle."""
    plain = {"prompt": PROMPT, "ignore_eos": True}
    drawn = {"temperature": 0.9, "seed": 7}
    form = {"type": "json_schema", "json_schema": {"name": "colours", "schema": SCHEMA}}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": (COMPLETION, plain),
        "penalties": (
            COMPLETION,
            {**plain, "presence_penalty": 0.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
        ),
        # Every fifth token ends it, once it may end.
        "min_tokens": (
            COMPLETION,
            {**plain, **drawn, "min_tokens": 70, "stop_token_ids": list(range(3, 1024, 5))},
        ),
        "stop": (COMPLETION, {**plain, "stop": ["never to be seen", half]}),
        "logprobs": (COMPLETION, {**plain, **drawn, "logprobs": 4}),
        "many": (COMPLETION, {**plain, **drawn, "n": 3, "logprobs": 1}),
        "chat": (CHAT, {"messages": TALK, **drawn, "logprobs": True, "top_logprobs": 3}),
        "schema": (CHAT, {"messages": TALK, **drawn, "response_format": form}),
    }
    common = {"max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    return {name: (path, common | body) for name, (path, body) in bodies.items()}


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


def sensible(expected: dict[str, Answer]) -> None:
    """The questions do ask for something."""
    first = {name: answer.choices[0] for name, answer in expected.items()}
    assert first["plain"].finish_reason == "length"
    assert expected["plain"].usage["completion_tokens"] == TOKENS
    assert first["penalties"].token_ids != first["plain"].token_ids
    assert first["min_tokens"].finish_reason == "stop"
    assert 70 < len(first["min_tokens"].token_ids) < TOKENS
    assert first["stop"].finish_reason == "stop"
    assert first["plain"].text.startswith(first["stop"].text)
    assert HALF - 12 < len(first["stop"].token_ids) < HALF + 12
    assert len(first["logprobs"].scores) == TOKENS
    assert len({choice.text for choice in expected["many"].choices}) == 3
    assert first["chat"].scores
    assert first["schema"].text.lstrip().startswith("{")


def test_a_client_comes_back_to_its_stream(people):
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
