"""Fields of a request to what an AW is told."""

from __future__ import annotations

import json

import pytest

from tarragon_hpc.errors import ModelError, RequestError
from tarragon_hpc.gateway.fields import read_request
from tarragon_hpc.gateway.sampling import Limits, SamplingDefaults, check_prompt, sampling_specs
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest

LIMITS = Limits(vocab=100, max_len=50)


def defaults(tmp_path, **values):
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return SamplingDefaults.load(tmp_path)


def specs(defaults, *, chat=False, prompt_tokens=10, **fields):
    body = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    request = read_request(ChatRequest if chat else CompletionRequest, body | fields)
    return sampling_specs(request, prompt_tokens, LIMITS, defaults)


@pytest.fixture
def plain(tmp_path):
    return SamplingDefaults.load(tmp_path / "without")


def test_defaults_are_vllms(plain):
    (spec,) = specs(plain)
    assert (spec.max_tokens, spec.temperature, spec.top_p, spec.top_k) == (16, 1.0, 1.0, 0)
    assert (spec.min_p, spec.seed, spec.repetition_penalty, spec.logprobs) == (0.0, None, 1.0, None)
    assert (spec.ignore_eos, spec.stop_token_ids, spec.min_tokens) == (False, [], 0)
    assert specs(plain, chat=True)[0].max_tokens == 40


def test_everything_that_is_given_arrives(plain):
    fields = {
        "max_tokens": 7, "min_tokens": 3, "temperature": 0, "top_p": 0.5, "top_k": 4, "min_p": 0.1,
        "presence_penalty": -1, "frequency_penalty": 1.5, "repetition_penalty": 1.1,
        "ignore_eos": True, "stop_token_ids": [5, 6], "logprobs": 2, "seed": -7,
    }  # fmt: skip
    (spec,) = specs(plain, **fields)
    assert {name: getattr(spec, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 50}, 40),
        ({"max_tokens": 40}, 40),
        ({"chat": True, "max_tokens": 5}, 5),
        ({"chat": True, "max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"chat": True, "max_completion_tokens": 45}, 40),
        ({"prompt_tokens": 49}, 1),
    ],
)
def test_output_is_cut_to_what_the_context_leaves(plain, fields, max_tokens):
    assert specs(plain, **fields)[0].max_tokens == max_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_tokens": 2**80}, "max_tokens"),
        ({"chat": True, "max_completion_tokens": 51}, "max_completion_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"max_tokens": 50, "min_tokens": 41}, "min_tokens"),
        ({"stop_token_ids": [1, 100]}, "stop_token_ids"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(plain, fields, param):
    with pytest.raises(RequestError, match=rf"^{param}") as error:
        specs(plain, **fields)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("prompt", "what"),
    [([], "at least one"), ([1] * 50, "has 50 tokens"), ([100], "token id 100"), ([5, -1], "id -1"),
     ([2**70], "vocabulary")],
)  # fmt: skip
def test_prompts_that_no_engine_may_see(prompt, what):
    with pytest.raises(RequestError, match=what) as error:
        check_prompt(prompt, LIMITS, "prompt")
    assert error.value.param == "prompt"


def test_prompts_that_just_fit():
    check_prompt([0, 99] * 24 + [1], LIMITS, "prompt")


def test_choices_of_a_seeded_request_differ_as_in_vllm(plain):
    assert [s.seed for s in specs(plain, n=3, seed=5)] == [5, 6, 7]
    assert [s.seed for s in specs(plain, n=2)] == [None, None]
    assert [s.seed for s in specs(plain, n=2, seed=-1)] == [None, None]


def test_logprobs_of_both_kinds(plain):
    assert specs(plain, logprobs=0)[0].logprobs == 0
    assert specs(plain, chat=True, logprobs=True)[0].logprobs == 0
    assert specs(plain, chat=True, logprobs=True, top_logprobs=4)[0].logprobs == 4
    assert specs(plain, chat=True, logprobs=False)[0].logprobs is None


def test_the_checkpoint_sets_defaults_that_a_request_overrides(tmp_path):
    given = defaults(
        tmp_path, temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=12, repetition_penalty=1.05,
        eos_token_id=[1, 2], do_sample=True, min_p=None,
    )  # fmt: skip
    (spec,) = specs(given)
    assert (spec.temperature, spec.top_k, spec.top_p) == (0.6, 20, 0.95)
    assert (spec.repetition_penalty, spec.min_p, spec.max_tokens) == (1.05, 0.0, 16)
    assert specs(given, chat=True)[0].max_tokens == 12
    assert specs(given, chat=True, max_tokens=30, temperature=0.0)[0].max_tokens == 30
    assert specs(given, temperature=0)[0].temperature == 0


@pytest.mark.parametrize("value", ["hot", True, [1]])
def test_a_broken_generation_config_names_its_key(tmp_path, value):
    with pytest.raises(ModelError, match=r"generation_config.json: temperature: must be a number"):
        defaults(tmp_path, temperature=value)
    with pytest.raises(ModelError, match="must be finite"):
        defaults(tmp_path, top_p=float("nan"))
