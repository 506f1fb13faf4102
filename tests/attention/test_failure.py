"""The AW's engine when experts cannot be reached, and when a request cannot be run."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.errors import ConfigError, RequestError


def case(prompt, **params):
    from tests.attention.conftest import Case

    return Case(prompt, params)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(60, 1024) for _ in range(length)]


@pytest.fixture
def mixtral(tiny_models, ours):
    engine = ours(tiny_models("mixtral"))
    yield engine
    engine.experts.fail = None
    assert not engine.engine.has_work


@pytest.mark.parametrize("call", ["dispatch", "combine"])
def test_a_lost_step_fails_its_sequences_and_only_those(call, mixtral):
    engine, experts = mixtral.engine, mixtral.experts
    cases = [case(prompt(i, 20), max_tokens=10) for i in range(20)]  # 16 run, 4 wait
    expected = mixtral.generate(cases)
    for i, c in enumerate(cases):
        mixtral.add(c, str(i))
    while engine.stats()["running"] < 16:
        assert not engine.step().failed
    calls = len(experts.calls)
    experts.fail = call
    step = engine.step()
    assert step.tokens == []
    assert step.failed == [str(i) for i in range(16)]
    assert str(step.loss) == "ew1 lost: killed by the test"
    assert len(experts.calls) - calls <= 1, "the other layers need not have tried"
    experts.fail = None
    outputs = mixtral.finish()
    assert outputs == {str(i): expected[i] for i in range(16, 20)}
    assert engine.stats()["kv_use"] == 0
    assert mixtral.generate(cases) == expected


def test_garbage_from_a_lost_step_is_not_found_in_the_prefix_cache(mixtral):
    engine, experts = mixtral.engine, mixtral.experts
    long = case(prompt(77, 200), max_tokens=8)  # blocks of 128 tokens, steps of 64
    expected = mixtral.generate([long])
    assert engine._llm.reset_prefix_cache()
    mixtral.add(long)
    engine.step()
    experts.fail = "combine"
    assert engine.step().failed == ["0"]  # the step that filled the first block
    experts.fail = None
    assert mixtral.generate([long]) == expected
    experts.calls.clear()
    assert mixtral.generate([long]) == expected
    prefilled = sum(rows for layer, rows in experts.calls if layer == 0) - 7
    assert prefilled == 200 - 128, "the prefix cache is of no use any more"


def test_a_lost_step_while_prompts_still_wait_for_their_first_token(mixtral):
    mixtral.experts.fail = "combine"
    mixtral.add(case(prompt(5, 150)))
    assert mixtral.engine.step().failed == ["0"]
    assert not mixtral.engine.has_work


@pytest.mark.parametrize(
    ("param", "bad"),
    [
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [1024]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": [5] * 512}),
        ("max_tokens", {"max_tokens": 0}),
        ("temperature", {"temperature": float("nan")}),
        ("stop_token_ids", {"stop_token_ids": [5000]}),
        ("logprobs", {"logprobs": 1000}),
    ],
)
def test_a_bad_request_is_refused_and_nothing_else_happens(param, bad, mixtral):
    arguments = {"prompt": prompt(1, 5), **bad}
    with pytest.raises(RequestError) as caught:
        mixtral.add(case(arguments.pop("prompt"), **arguments))
    assert caught.value.param == param
    assert not mixtral.engine.has_work
    assert mixtral.generate([case(prompt(1, 5))])[0].finish == "length"


def test_what_only_vllm_can_tell_is_refused_as_well(mixtral, monkeypatch):
    monkeypatch.setattr("tarragon_hpc.attention.engine.check_request", lambda *_: None)
    with pytest.raises(RequestError, match="top_p"):
        mixtral.add(case(prompt(1, 5), top_p=7.0, temperature=1.0))


BOUNDARIES = {
    "max_tokens": st.sampled_from([1, 2, 10**12]),
    "min_tokens": st.sampled_from([0, 1]),
    "temperature": st.sampled_from([0, 1e-9, 0.5, 2]),
    "top_p": st.sampled_from([1e-9, 0.5, 1]),
    "top_k": st.sampled_from([-1, 0, 1, 10**6]),
    "min_p": st.sampled_from([0, 1]),
    "seed": st.sampled_from([None, -1, 0, -(1 << 63), (1 << 63) - 1]),
    "presence_penalty": st.sampled_from([-2, 0, 2]),
    "frequency_penalty": st.sampled_from([-2, 0, 2]),
    "repetition_penalty": st.sampled_from([1e-6, 1, 1e6]),
    "ignore_eos": st.booleans(),
    "stop_token_ids": st.sampled_from([[], [0, 1023]]),
    "logprobs": st.sampled_from([None, 0, 20]),
}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(params=st.fixed_dictionaries(BOUNDARIES))
def test_the_engine_survives_whatever_passes_validation(params, mixtral):
    mixtral.add(case([5, 1023], **params))
    step = mixtral.engine.step()
    assert len(step.tokens) == 1
    mixtral.engine.abort(["0"])


def test_a_request_that_runs_already_is_refused(mixtral):
    mixtral.add(case(prompt(1, 5)), "twice")
    with pytest.raises(RequestError, match="'twice' runs already"):
        mixtral.add(case(prompt(1, 5)), "twice")
    mixtral.finish()


def test_a_kv_cache_that_cannot_hold_one_sequence_is_named(tiny_models):
    from tests.attention.conftest import Ours

    with pytest.raises(ConfigError, match="the estimated maximum model length is") as caught:
        Ours(tiny_models("mixtral"), kv_cache=600 << 10)
    assert caught.value.key == "attention.kv_cache"
    assert "\n" not in str(caught.value)


def test_aborted_sequences_say_nothing_more(mixtral):
    for request in ("a", "b"):
        mixtral.add(case(prompt(3, 10), max_tokens=5), request)
    mixtral.engine.step()
    mixtral.engine.abort(["a", "nobody"])
    outputs = mixtral.finish()
    assert list(outputs) == ["b"]
    assert len(outputs["b"].token_ids) == 4
