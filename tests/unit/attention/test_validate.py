import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.attention.validate import Limits, check_request
from tarragon_hpc.errors import RequestError
from tarragon_hpc.wire.common import SamplingSpec, StructureSpec

LIMITS = Limits(vocab=100, max_len=32, max_logprobs=20)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 10**9},
        {"min_tokens": 5, "max_tokens": 5},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": -1},
        {"seed": -(1 << 63)},
        {"stop_token_ids": [0, 99]},
        {"logprobs": 20},
        {"structure": StructureSpec("choice", '["a"]')},
    ],
)
def test_good_requests_pass(fields):
    check_request([0, 99], SamplingSpec(**{"max_tokens": 5, **fields}), LIMITS)
    check_request([1] * 31, SamplingSpec(**{"max_tokens": 5, **fields}), LIMITS)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -3, "at least 1"),
        ("min_tokens", -1, r"\[0, 5\]"),
        ("min_tokens", 6, r"\[0, 5\]"),
        ("temperature", -0.1, r"\[0, 2\]"),
        ("temperature", 2.1, r"\[0, 2\]"),
        ("temperature", math.nan, r"\[0, 2\]"),
        ("top_p", 0.0, r"\(0, 1\]"),
        ("top_p", math.nan, r"\(0, 1\]"),
        ("top_k", -2, "0 or -1"),
        ("min_p", 1.5, r"\[0, 1\]"),
        ("presence_penalty", 2.5, r"\[-2, 2\]"),
        ("frequency_penalty", -math.inf, r"\[-2, 2\]"),
        ("repetition_penalty", 0.0, "greater than 0"),
        ("repetition_penalty", math.inf, "greater than 0"),
        ("repetition_penalty", math.nan, "greater than 0"),
        ("seed", 1 << 63, "64 bits"),
        ("stop_token_ids", [5, 100], "0 to 99"),
        ("stop_token_ids", [-1], "0 to 99"),
        ("logprobs", 21, r"\[0, 20\]"),
        ("logprobs", -1, r"\[0, 20\]"),
    ],
)
def test_the_field_at_fault_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(RequestError, match=allowed) as caught:
        check_request([1], SamplingSpec(**{"max_tokens": 5, field: value}), LIMITS)
    assert caught.value.param == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([], "at least one token"),
        ([1, 100], "100 is not a token id; the vocabulary is 0 to 99"),
        ([-1], "-1 is not a token id"),
        ([1] * 32, "has 32 tokens, but the context holds 32"),
    ],
)
def test_prompts_that_cannot_run(prompt, problem):
    with pytest.raises(RequestError, match=problem) as caught:
        check_request(prompt, SamplingSpec(max_tokens=5), LIMITS)
    assert caught.value.param == "prompt"


def test_a_prompt_that_fills_the_context_has_the_code_clients_look_for():
    with pytest.raises(RequestError) as caught:
        check_request([1] * 40, SamplingSpec(max_tokens=5), LIMITS)
    assert caught.value.code == "context_length_exceeded"


around = st.one_of(st.floats(), st.floats(-2.5, 2.5), st.integers(-(10**20), 10**20))
counts = st.one_of(st.integers(-3, 25), st.integers(-(10**20), 10**20))
FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty")
COUNTS = ("max_tokens", "min_tokens", "top_k", "seed", "logprobs")


@settings(deadline=None)  # shared machines stall
@given(
    prompt=st.lists(st.integers(-1, 101), max_size=40),
    floats=st.fixed_dictionaries(dict.fromkeys(FLOATS, around)),
    ints=st.fixed_dictionaries(dict.fromkeys(COUNTS, counts)),
)
def test_whatever_comes_is_either_good_or_refused(prompt, floats, ints):
    with contextlib.suppress(RequestError):
        check_request(prompt, SamplingSpec(**floats, **ints), LIMITS)
        assert 0 < len(prompt) < LIMITS.max_len
        assert all(0 <= token < LIMITS.vocab for token in prompt)
        assert all(math.isfinite(value) for value in floats.values())
        assert 0 <= ints["min_tokens"] <= ints["max_tokens"]


def test_a_structure_is_refused_under_the_name_that_the_client_knows():
    structure = StructureSpec("choice", "[]", "structured_outputs.choice")
    with pytest.raises(RequestError, match=r"^structured_outputs.choice: must be a list") as error:
        check_request([1], SamplingSpec(max_tokens=5, structure=structure), LIMITS)
    assert error.value.param == "structured_outputs.choice"
