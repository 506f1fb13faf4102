"""Whole answers to whole requests, streamed or not, in one form that can be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx


@dataclass
class Choice:
    """scores: for each token its own text and log probability and those of the likeliest ones."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tokens: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)

    def add(self, part: dict[str, Any]) -> None:
        """One choice of an answer or of a chunk of it."""
        assert self.finish_reason is None, "something came after the end"
        message = part.get("message") or part.get("delta") or {}
        self.text += part.get("text") or message.get("content") or ""
        self.token_ids += part.get("token_ids") or []
        self.finish_reason = part["finish_reason"]
        self.stop_reason = part.get("stop_reason")
        scores = part.get("logprobs") or {}
        for entry in scores.get("content", ()):
            self.tokens.append(entry["token"])
            ranked = {e["token"]: e["logprob"] for e in entry["top_logprobs"]}
            self.scores.append({**ranked, "": entry["logprob"]})
        if "tokens" in scores:
            self.tokens += scores["tokens"]
            self.offsets += scores["text_offset"]
            pairs = zip(scores["token_logprobs"], scores["top_logprobs"], strict=True)
            self.scores += [{**ranked, "": chosen} for chosen, ranked in pairs]


@dataclass
class Answer:
    """What came in answer to one request."""

    choices: list[Choice]
    usage: dict[str, int] | None = None

    def check(self, expected: Answer) -> None:
        """It is the same answer; log probabilities may differ in the third digit."""
        assert self.usage == expected.usage
        assert len(self.choices) == len(expected.choices)
        for mine, theirs in zip(self.choices, expected.choices, strict=True):
            scores, mine.scores = mine.scores, []
            expected_scores = theirs.scores
            assert mine == Choice(**{**vars(theirs), "scores": []})
            mine.scores = scores
            assert len(scores) == len(expected_scores)
            for got, wanted in zip(scores, expected_scores, strict=True):
                assert got == pytest.approx(wanted, abs=1e-3)


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Answer:
    """The answer in one piece."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    choices = [Choice() for _ in whole["choices"]]
    for part in whole["choices"]:
        choices[part["index"]].add(part)
    return Answer(choices, whole["usage"])


async def ask_streaming(
    client: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    look: Callable[[Answer], None] = lambda _: None,
) -> Answer:
    """The answer as a stream; `look` is shown what has come after every event."""
    result = Answer([Choice() for _ in range(body.get("n", 1))])
    more = {"stream": True, "stream_options": {"include_usage": True}}
    done = False
    async with client.stream("POST", path, json=body | more) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            assert not done, "something came after the end"
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for part in event["choices"]:
                result.choices[part["index"]].add(part)
            result.usage = event.get("usage") or result.usage
            look(result)
    assert done
    return result
