"""Requests: every mistake is named, nothing that matters is ignored."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.fields import IGNORED, UNSUPPORTED, read_request, shown
from tarragon_hpc.gateway.prompts import completion_prompts, encode_completion
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}


def refused(model, body):
    with pytest.raises(RequestError) as error:
        read_request(model, body)
    assert error.value.status == 400
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", -1), ("n", 1.5), ("n", "2"), ("n", True),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", True),
        ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("top_k", 2**40), ("top_k", 0.5),
        ("min_p", -1), ("min_p", 2), ("presence_penalty", 3), ("frequency_penalty", -3),
        ("repetition_penalty", 0), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", "x"),
        ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", "many"), ("min_tokens", -1),
        ("stop", 5), ("stop", [1]), ("stop", ["a"] * 65), ("stop_token_ids", [-1]),
        ("stop_token_ids", 3), ("stream", "yes"), ("stream", 1), ("ignore_eos", "no"),
        ("return_token_ids", 1), ("stream_options", {"include_usage": True}), ("model", 5),
        ("request_id", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("model", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
def test_wrong_values_are_refused_by_name(model, body, field, value):
    error = refused(model, body | {field: value})
    assert error.param.startswith(field)
    assert str(error).startswith(field)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        (CHAT | {"top_logprobs": 2}, "top_logprobs"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT | {"logprobs": 3}, "logprobs"),
        (CHAT | {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT | {"chat_template_kwargs": []}, "chat_template_kwargs"),
        (CHAT | {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ],
)  # fmt: skip
def test_wrong_conversations_are_refused_by_name(body, param):
    assert refused(ChatRequest, body).param == param


@pytest.mark.parametrize("body", [[], "x", 5, None, True])
def test_a_body_that_is_no_object(body):
    assert "must be a JSON object" in str(refused(CompletionRequest, body))


def test_unknown_fields_are_refused_with_the_name_that_was_meant():
    error = refused(CompletionRequest, COMPLETION | {"temprature": 1})
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert "did you mean 'temperature'" in str(error)
    assert refused(ChatRequest, CHAT | {"prompt": "x"}).param == "prompt"


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_built_is_refused_only_if_it_asks_for_something(name):
    for harmless in (None, *UNSUPPORTED[name]):
        read_request(ChatRequest, CHAT | {name: harmless})
        read_request(CompletionRequest, COMPLETION | {name: harmless})
    error = refused(CompletionRequest, COMPLETION | {name: {"type": "json_object"}})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_what_changes_nothing_is_accepted():
    read_request(ChatRequest, CHAT | dict.fromkeys(IGNORED, "x"))


def test_nulls_are_defaults():
    nulls = dict.fromkeys(set(CompletionRequest.model_fields) - {"prompt"})
    assert read_request(CompletionRequest, COMPLETION | nulls) == read_request(
        CompletionRequest, COMPLETION
    )


def test_the_answer_of_the_service_can_be_sent_back():
    answer = {"role": "assistant", "content": "x", "refusal": None, "annotations": None,
              "audio": None, "function_call": None, "tool_calls": []}  # fmt: skip
    request = read_request(ChatRequest, {"messages": [*CHAT["messages"], answer]})
    assert request.messages[1].plain() == {"role": "assistant", "content": "x"}


def test_content_in_parts_is_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts, "name": "me"}, {"role": "assistant"}]}
    messages = [m.plain() for m in read_request(ChatRequest, body).messages]
    assert messages[0] == {"role": "user", "content": "a\nb", "name": "me"}
    assert messages[1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts(prompt, prompts):
    assert completion_prompts(prompt) == prompts


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], ["a", ""], [[1], []], 5, {}, True, [1, "a"], ["a", [1]], [True],
               [1.0], [[1, "a"]], [[True]], [None], [[1], None]]
)  # fmt: skip
def test_wrong_prompts(prompt):
    with pytest.raises(RequestError, match="^prompt: must") as error:
        completion_prompts(prompt)
    assert error.value.param == "prompt"


def test_long_texts_are_encoded_beside_the_event_loop(codec):
    text = "word " * 5_000
    request = read_request(CompletionRequest, {"prompt": [text, "short"]})

    async def main():
        """Turns of the loop while the texts are encoded, and the result."""
        turns, job = 0, asyncio.ensure_future(encode_completion(request, codec, 10**6))
        while not job.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, job.result()

    turns, prompts = asyncio.run(main())
    assert turns > 2
    assert prompts == [codec.encode(t, add_special_tokens=True) for t in (text, "short")]
    with pytest.raises(RequestError, match="25000 characters are more than") as error:
        asyncio.run(encode_completion(request, codec, 100))
    assert (error.value.param, error.value.code) == ("prompt", "context_length_exceeded")


@given(
    st.dictionaries(
        st.sampled_from(sorted([*ChatRequest.model_fields, *UNSUPPORTED, *IGNORED, "zzz"])),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_no_json_makes_it_fail_otherwise(body):
    for model in (ChatRequest, CompletionRequest):
        with contextlib.suppress(RequestError):
            assert isinstance(read_request(model, body), model)


def test_shown_is_short_and_on_one_line():
    assert shown("a\nb") == '"a\\nb"'
    assert len(shown("x" * 1000)) == 80
