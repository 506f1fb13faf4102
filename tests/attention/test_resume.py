"""A sequence that another AW had begun goes on here as if nothing had happened."""

from __future__ import annotations

import random

import pytest


def case(number: int, length: int, **params):
    from tests.attention.conftest import Case

    rng = random.Random(number)
    return Case([rng.randrange(60, 1024) for _ in range(length)], params)


CASES = {
    "greedy": case(1, 30, max_tokens=40),
    "long prompt": case(2, 150, max_tokens=20),
    "seeded": case(3, 20, max_tokens=40, temperature=0.8, seed=7),
    "seeded, cut": case(4, 20, max_tokens=40, temperature=1.1, seed=8, top_k=40, top_p=0.9),
    "seeded, chunked": case(5, 140, max_tokens=20, temperature=0.9, seed=-9, min_p=0.02),
    "penalties": case(
        6, 25, max_tokens=40, presence_penalty=1.5, frequency_penalty=0.9, repetition_penalty=1.3
    ),
    "logprobs": case(7, 25, max_tokens=20, logprobs=4),
    "minimum": case(8, 25, max_tokens=30, min_tokens=25, stop_token_ids=list(range(0, 1024, 2))),
}


@pytest.mark.parametrize("emitted", [1, 2, 13, 17])
def test_the_rest_is_the_same_whatever_the_sampling(emitted, tiny_models, ours):
    engine = ours(tiny_models("mixtral"))
    whole = engine.generate(list(CASES.values()))
    for i, (c, expected) in enumerate(zip(CASES.values(), whole, strict=True)):
        engine.resume(c, expected.token_ids[:emitted], str(i))
    outputs = engine.finish()
    for i, (name, expected) in enumerate(zip(CASES, whole, strict=True)):
        rest = outputs[str(i)]
        assert rest.token_ids == expected.token_ids[emitted:], name
        assert (rest.finish, rest.stop_reason) == (expected.finish, expected.stop_reason), name
        # A prompt's last row and a decoded one come from other kernels, so not the same bits.
        for ours_, theirs in zip(rest.logprobs, expected.logprobs[emitted:], strict=True):
            assert ours_.token_ids == theirs.token_ids, name
            assert ours_.logprobs == pytest.approx(theirs.logprobs, abs=1e-4), name
    assert engine.engine.stats()["kv_use"] == 0


def test_deltas_say_where_they_go_on_and_in_which_attempt(tiny_models, ours):
    engine = ours(tiny_models("mixtral"))
    c = CASES["greedy"]
    (expected,) = engine.generate([c])
    engine.resume(c, expected.token_ids[:5], attempt=3)
    deltas = []
    while engine.engine.has_work:
        deltas += engine.engine.step().tokens
    assert [d.index for d in deltas] == list(range(5, 40))
    assert {d.attempt for d in deltas} == {3}


def test_what_is_complete_already_is_refused(tiny_models, ours):
    from tarragon_hpc.errors import RequestError

    engine = ours(tiny_models("mixtral"))
    with pytest.raises(RequestError, match="tokens: 4 are there already"):
        engine.resume(case(9, 10, max_tokens=4), [1, 2, 3, 4])
    with pytest.raises(RequestError, match="tokens: 5000 is not a token id"):
        engine.resume(case(9, 10, max_tokens=4), [5000])
    assert not engine.engine.has_work


def test_one_that_is_aborted_before_it_ran_leaves_nothing(tiny_models, ours):
    engine = ours(tiny_models("mixtral"))
    engine.resume(CASES["greedy"], [100, 200])
    engine.engine.abort(["0"])
    assert not engine.engine.has_work
    assert engine.engine._resumed._tokens == engine.engine._resumed._computed == {}
