"""The openai package against a running gateway."""

from __future__ import annotations

import openai
import pytest

from tarragon_hpc.wire.to_head import Failed, Refused

TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny", 128)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        client.models.retrieve("other")


def test_completions_streamed_and_not(client):
    kwargs = {
        "model": "tiny", "prompt": "hi", "max_tokens": 8, "n": 3, "seed": 3, "logprobs": 2,
        "extra_body": {"return_tokens_as_token_ids": True},
    }  # fmt: skip
    whole = client.completions.create(**kwargs)
    assert [c.index for c in whole.choices] == [0, 1, 2]
    assert len({c.text for c in whole.choices}) == 3
    assert len(whole.choices[0].logprobs.top_logprobs[0]) == 3
    assert whole.usage.completion_tokens == 24
    texts = ["", "", ""]
    with client.completions.create(**kwargs, stream=True) as stream:
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [c.text for c in whole.choices]


def test_chat_streamed_and_not(client):
    kwargs = {
        "model": "tiny", "messages": TALK, "max_completion_tokens": 8, "n": 3, "seed": 3,
        "logprobs": True, "top_logprobs": 2, "user": "me", "store": False, "metadata": {"a": "b"},
    }  # fmt: skip
    whole = client.chat.completions.create(**kwargs)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[2].logprobs.content[7].top_logprobs) == 2
    texts, usage = ["", "", ""], None
    options = {"include_usage": True}
    with client.chat.completions.create(**kwargs, stream=True, stream_options=options) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content
    assert texts == [c.message.content for c in whole.choices]
    assert usage == whole.usage
    assert usage.completion_tokens == 24


def test_the_answer_goes_into_the_next_turn(client):
    answer = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=4)
    talk = [*TALK, answer.choices[0].message.model_dump(), *TALK]
    client.chat.completions.create(model="tiny", messages=talk, max_tokens=4)


def test_extra_body_reaches_the_worker(client, gateway):
    client.completions.create(
        model="tiny", prompt=[5, 6], extra_body={"ignore_eos": True, "top_k": 3, "min_p": 0.5}
    )
    sampling = gateway.worker.submitted[0].sampling
    assert (sampling.ignore_eos, sampling.top_k, sampling.min_p) == (True, 3, 0.5)


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_right_exceptions(client, gateway, stream):
    def create(**kwargs):
        return client.completions.create(**{"model": "tiny", "prompt": "x"} | kwargs, stream=stream)

    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        create(temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as bad:
        create(suffix="x")
    assert bad.value.param == "suffix"
    gateway.call(gateway.sessions.set_serving, False, "ew1 is lost")
    try:
        with pytest.raises(openai.InternalServerError, match="ew1 is lost") as away:
            create()
        assert away.value.status_code == 503
    finally:
        gateway.call(gateway.sessions.set_serving, True, "")
    with gateway.full():
        with pytest.raises(openai.RateLimitError) as full:
            create()
        assert full.value.response.headers["retry-after"] == "1"


def test_an_error_in_the_middle_of_a_stream_raises_in_the_client(client, gateway):
    gateway.worker.hold = 2
    stream = client.chat.completions.create(model="tiny", messages=TALK, stream=True)
    with stream:
        seen = [next(stream) for _ in range(3)]
        assert [bool(chunk.choices[0].delta.role) for chunk in seen] == [True, False, False]
        request = gateway.worker.submitted[0].request
        failed = Failed("aw0", gateway.worker.incarnation, [request], "ew0 is lost", again=False)
        gateway.call(gateway.sessions.on_failed, failed)
        with pytest.raises(openai.APIError, match=r"ew0 is lost \(2 tokens had been"):
            next(stream)


def test_the_client_tries_again_when_the_worker_was_lost(gateway):
    worker = gateway.worker
    worker.hold = 0

    def fail(message):
        worker.hold = worker.react = None
        failed = Failed(
            "aw0", gateway.worker.incarnation, [message.request], "ew0 is lost", again=False
        )
        gateway.sessions.on_failed(failed)

    worker.react = fail
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=1) as client:
        answer = client.completions.create(model="tiny", prompt="x", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert len(worker.submitted) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_worker_refuses_is_a_bad_request_with_its_field(client, gateway, stream):
    gateway.worker.hold = 0
    gateway.worker.react = lambda message: gateway.sessions.on_refused(
        Refused(
            "aw0", gateway.worker.incarnation, message.request, "too long for the cache", "prompt"
        )
    )
    with pytest.raises(openai.BadRequestError, match="too long for the cache") as error:
        client.completions.create(model="tiny", prompt="x", stream=stream)
    assert error.value.param == "prompt"
