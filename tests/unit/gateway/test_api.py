"""The two generating routes over a real socket, byte for byte where it matters."""

from __future__ import annotations

import json

import pytest

WORD = "the"


def events(response):
    """The data of a stream's events; DONE comes last and only there."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def complete(http, **body):
    response = http.post("/v1/completions", json={"prompt": "hi", **body})
    assert response.status_code == 200, response.text
    return events(response) if body.get("stream") else response.json()


def chat(http, **body):
    talk = {"messages": [{"role": "user", "content": "hi"}]}
    response = http.post("/v1/chat/completions", json=talk | body)
    assert response.status_code == 200, response.text
    return events(response) if body.get("stream") else response.json()


def test_a_completion(gateway, http, codec):
    gateway.worker.script = codec.encode(WORD, add_special_tokens=False)
    answer = complete(http)
    (message,) = gateway.worker.submitted
    assert message.prompt == codec.encode("hi", add_special_tokens=True)
    assert message.sampling.max_tokens == 16
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 0
    count = len(gateway.worker.script) + 1
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "text": WORD,
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": len(message.prompt),
            "completion_tokens": count,
            "total_tokens": len(message.prompt) + count,
        },
    }


def test_a_streamed_completion_is_the_same_in_pieces(gateway, http):
    body = {"max_tokens": 9, "seed": 4, "n": 2, "return_token_ids": True, "logprobs": 1}
    whole = complete(http, **body)
    chunks = complete(http, **body, stream=True)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [t for c in mine for t in c["token_ids"]] == choice["token_ids"]
        assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "length"
        assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert not any("prompt_token_ids" in c for c in mine[1:])
        for key, value in choice["logprobs"].items():
            assert [v for c in mine for v in c["logprobs"][key]] == value
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_of_a_stream(gateway, http):
    chunks = complete(http, stream=True, max_tokens=3, stream_options={"include_usage": True})
    *rest, last = chunks
    assert all(chunk.get("usage") is None and chunk["choices"] for chunk in rest)
    prompt = len(gateway.worker.submitted[0].prompt)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3,
    }  # fmt: skip
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = complete(http, stream=True, max_tokens=3, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks][-1] == 3
    assert [c["usage"]["completion_tokens"] for c in chunks][0] == 1
    chunks = chat(http, stream=True, max_tokens=3, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks][0] == 0
    assert [c["usage"]["completion_tokens"] for c in chunks][-1] == 3


def test_several_prompts_of_any_kind(gateway, http, codec):
    answer = complete(http, prompt=["a", "b b"], max_tokens=2, n=2, return_token_ids=True)
    prompts = [codec.encode(text, add_special_tokens=True) for text in ("a", "b b")]
    choices = answer["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    assert [c["prompt_token_ids"] for c in choices] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer["usage"]["completion_tokens"] == 8
    complete(http, prompt=[7, 8], max_tokens=1)
    complete(http, prompt=[[7, 8], [9]], max_tokens=1)
    assert [m.prompt for m in gateway.worker.submitted[-3:]] == [[7, 8], [7, 8], [9]]
    complete(http, prompt="a", add_special_tokens=False)
    assert gateway.worker.submitted[-1].prompt == prompts[0][1:]


def test_seeds_of_the_choices(gateway, http):
    complete(http, n=3, seed=10, max_tokens=1)
    assert [m.sampling.seed for m in gateway.worker.submitted] == [10, 11, 12]


def test_completion_logprobs(gateway, http, codec):
    gateway.worker.script = [*codec.encode("ab", add_special_tokens=False), 1]
    a, b = gateway.worker.script[:2]
    choice = complete(http, logprobs=1)["choices"][0]
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.25] * 3,
        "tokens": ["a", "b", "</s>"],
        "top_logprobs": [
            {"a": -0.25, codec.decode([a + 1]): -0.5},
            {"b": -0.25, codec.decode([b + 1]): -0.5},
            {"</s>": -0.25, "<pad>": -0.5},
        ],
    }
    ids = complete(http, logprobs=0, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]
    assert ids["tokens"] == [f"token_id:{a}", f"token_id:{b}", "token_id:1"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_one_choice_on_the_worker_too(gateway, http, codec, stream):
    gateway.worker.script = codec.encode("one two three", add_special_tokens=False) * 3
    answer = complete(http, stop=["two"], max_tokens=40, stream=stream, return_token_ids=True)
    choices = [c for a in (answer if stream else [answer]) for c in a["choices"]]
    assert "".join(c["text"] for c in choices) == "one "
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "two")
    kept = [t for c in choices for t in c["token_ids"]]
    assert codec.decode(kept).startswith("one two")
    assert gateway.worker.aborted == [gateway.worker.submitted[0].request]
    kept = complete(http, stop="two", max_tokens=40, include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == "one two"


def test_stop_tokens_and_min_tokens_are_the_workers_business(gateway, http):
    gateway.worker.script = [70, 71, 70]
    answer = complete(http, stop_token_ids=[70], min_tokens=1, ignore_eos=True)
    assert answer["choices"][0]["stop_reason"] == 70
    assert answer["usage"]["completion_tokens"] == 3
    sampling = gateway.worker.submitted[0].sampling
    assert (sampling.stop_token_ids, sampling.min_tokens, sampling.ignore_eos) == ([70], 1, True)


def test_a_chat(gateway, http, codec):
    gateway.worker.script = codec.encode(WORD, add_special_tokens=False)
    answer = chat(http, return_token_ids=True, max_tokens=20)
    (message,) = gateway.worker.submitted
    assert codec.decode(message.prompt) == "<s><|user|>\nhi\n<|assistant|>\n"
    assert answer["prompt_token_ids"] == message.prompt
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": WORD, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": [*gateway.worker.script, 1],
        }
    ]


def test_a_chat_may_fill_the_context(gateway, http):
    answer = chat(http, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 128
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_streamed_chat_begins_with_the_roles(gateway, http):
    body = {"max_tokens": 4, "n": 2, "seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = chat(http, **body)
    chunks = chat(http, **body, stream=True, return_token_ids=True)
    first = [chunk["choices"][0] for chunk in chunks[:2]]
    assert [c["index"] for c in first] == [0, 1]
    assert all(c["delta"] == {"role": "assistant", "content": ""} for c in first)
    assert [bool(chunk.get("prompt_token_ids")) for chunk in chunks[:3]] == [True, True, False]
    for choice in whole["choices"]:
        mine = [
            c for chunk in chunks[2:] for c in chunk["choices"] if c["index"] == choice["index"]
        ]
        assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
        content = [entry for c in mine for entry in c["logprobs"]["content"]]
        assert content == choice["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in content] == [2] * 4
        assert content[0]["bytes"] == list(content[0]["token"].encode())


def test_a_chat_template_that_refuses(http):
    talk = [{"role": "developer", "content": "x"}]
    response = http.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 1})
    assert response.status_code == 200
    body = {"messages": talk, "reasoning_effort": "low"}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"


def test_what_vllm_bench_serve_sends(gateway, http):
    body = {
        "model": "tiny",
        "prompt": "hi",
        "repetition_penalty": 1.0,
        "max_tokens": 4,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "temperature": 0.0,
    }
    *chunks, last = complete(http, **body)
    assert [len(chunk["choices"]) for chunk in chunks] == [1] * 4
    assert last["usage"]["completion_tokens"] == 4
    content = [{"type": "text", "text": "hi"}]
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, last = chat(http, **body)
    assert last["usage"]["completion_tokens"] == 4


def test_the_model_may_be_named_by_its_path_or_not_at_all(gateway, http, model_dir):
    for name in ("tiny", str(model_dir), None):
        assert complete(http, model=name, max_tokens=1)["model"] == "tiny"


def test_an_id_of_the_clients_own(gateway, http):
    first = complete(http, request_id="mine", max_tokens=1)
    again = complete(http, request_id="mine", max_tokens=1)
    assert first["id"] == again["id"] == "cmpl-mine"
    assert len({m.request for m in gateway.worker.submitted}) == 2
