"""Requests that ask for more than tokens, and what shows that their answers have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.answers import Answer

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
