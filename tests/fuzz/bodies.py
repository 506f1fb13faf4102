"""What clients of the gateway send."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

from tarragon_hpc.errors import Overloaded, RequestError
from tarragon_hpc.gateway.body import read_json_body
from tarragon_hpc.gateway.fields import read_request
from tarragon_hpc.gateway.front import KeyRing
from tarragon_hpc.gateway.prompts import completion_prompts
from tarragon_hpc.gateway.replay import read_position
from tarragon_hpc.gateway.sampling import Limits, SamplingDefaults, check_prompt, sampling_specs
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.wire.codec import encode
from tarragon_hpc.wire.to_worker import Submit
from tests.fuzz.target import Family

family = Family()
LIMIT = 1 << 16
LIMITS = Limits(vocab=512, max_len=128)
NEUTRAL = SamplingDefaults.load(Path("/nowhere"))

_COMMON = {
    "model": "m",
    "max_tokens": 5,
    "n": 2,
    "temperature": 0.5,
    "seed": 3,
    "stop": ["x", "y"],
    "stop_token_ids": [7],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def _completions():
    bodies = [
        {"prompt": "hi", **_COMMON, "logprobs": 2, "user": "u", "echo": False},
        {"prompt": [1, 2, 3], "structured_outputs": {"regex": "a+"}},
        {"prompt": [[1], [2]], "response_format": {"type": "json_object"}},
        {"prompt": ["a", "b"], "structured_outputs": {"choice": ["a", "b"]}},
    ]
    return [json.dumps(body).encode() for body in bodies]


def _chats():
    schema = {"name": "s", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
    bodies = [
        {"messages": [{"role": "user", "content": "hi"}], **_COMMON, "logprobs": True},
        {
            "messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "top_logprobs": 3,
            "logprobs": True,
            "tools": [],
        },
    ]
    return [json.dumps(body).encode() for body in bodies]


def _read(data):
    """As `app` reads it, all in one piece."""

    async def stream():
        yield data

    request = SimpleNamespace(headers={"content-type": "application/json"}, stream=stream)
    try:
        read_json_body(request, LIMIT).send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited for something")


SESSIONS = Sessions(lambda *_: None, 16)


def _use(request, prompts):
    SESSIONS.check_count(len(prompts) * request.n)
    for prompt in prompts:
        check_prompt(prompt, LIMITS, "prompt")
        for spec in sampling_specs(request, len(prompt), LIMITS, NEUTRAL):
            encode(Submit("r", prompt, spec))


@family.add(_completions, RequestError, Overloaded)
def completion_body(data):
    request = read_request(CompletionRequest, _read(data))
    prompts = completion_prompts(request.prompt)
    _use(request, [[1, 2] if isinstance(p, str) else p for p in prompts])


@family.add(_chats, RequestError, Overloaded)
def chat_body(data):
    request = read_request(ChatRequest, _read(data))
    json.dumps([message.plain() for message in request.messages])
    _use(request, [[1, 2, 3]])


@family.add(lambda: [b"after=5", b"after=%35&x=1", b"Bearer secret"], RequestError)
def headers(data):
    """Of a client that comes back to its stream, and of one with a key."""
    text = data.decode("latin-1")
    assert not KeyRing(["a key that is not in there"]).admits(text)
    assert read_position(dict(parse_qsl(text)), None) >= 0
    assert read_position({}, text) >= 0
