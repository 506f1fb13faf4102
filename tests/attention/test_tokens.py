"""The AW's engine gives the tokens of plain vLLM: same checkpoint, fp32."""

from __future__ import annotations

import json
import random
import shutil

import pytest

VOCAB = 1024
GENERATION_EOS = [40, 41, 42, 43]
TOKENIZER_EOS = 30


def case(prompt, **params):
    from tests.attention.conftest import Case

    return Case(prompt, params)


def some_prompts(count: int, longest: int = 150) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens; the longest takes several steps of 64 tokens."""
    rng = random.Random(7)
    lengths = [1, longest, *(rng.randint(2, longest) for _ in range(count - 2))]
    return [[rng.randrange(60, VOCAB) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3", "gpt-oss"])
def test_greedy(family, tiny_models, plain, ours):
    path = tiny_models(family)
    cases = [case(prompt, max_tokens=24, ignore_eos=True) for prompt in some_prompts(6)]
    expected, actual = plain(path).generate(cases), ours(path).generate(cases)
    assert [o.token_ids for o in actual] == [o.token_ids for o in expected]
    assert all(len(o.token_ids) == 24 and o.finish == "length" for o in actual)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", ["none", "piecewise"])
def test_greedy_on_a_gpu(cuda_graphs, tiny_models, plain, ours):
    path = tiny_models("mixtral")
    cases = [case(prompt, max_tokens=24, ignore_eos=True) for prompt in some_prompts(6)]
    expected = plain(path).generate(cases)
    actual = ours(path, cuda_graphs=cuda_graphs).generate(cases)
    assert [o.token_ids for o in actual] == [o.token_ids for o in expected]


@pytest.fixture(scope="module")
def many_eos(tiny_models, tmp_path_factory):
    """A checkpoint whose tokenizer and generation config name different end-of-sequence tokens."""
    path = tmp_path_factory.mktemp("eos") / "model"
    shutil.copytree(tiny_models("mixtral"), path)
    generation = json.loads((path / "generation_config.json").read_text())
    generation["eos_token_id"] = GENERATION_EOS
    (path / "generation_config.json").write_text(json.dumps(generation))
    vocab = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer["eos_token"] = next(text for text, i in vocab.items() if i == TOKENIZER_EOS)
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


SAMPLED = {
    "eos": {"max_tokens": 250},
    "eos, flat": {"max_tokens": 250, "temperature": 1.5},
    "ignore_eos": {"ignore_eos": True},
    "min_tokens": {"min_tokens": 30},
    "min_tokens, ignore_eos": {"min_tokens": 30, "ignore_eos": True, "stop_token_ids": [7, 99]},
    "stop_token_ids": {"stop_token_ids": list(range(500, 530))},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.02},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "repetition": {"repetition_penalty": 1.3},
    "cold": {"temperature": 0.3},
}


def test_sampling_and_stopping(many_eos, plain, ours):
    prompts = some_prompts(4, longest=60)
    cases = [
        case(prompt, **{"temperature": 1.0, "max_tokens": 60, "seed": 100 + i, **params})
        for params in SAMPLED.values()
        for i, prompt in enumerate(prompts)
    ]
    expected, actual = plain(many_eos, batched=1024).generate(cases), ours(many_eos).generate(cases)
    assert actual == expected
    ends = {(o.finish, o.stop_reason) for o in actual}
    assert ("length", None) in ends
    assert ("stop", None) in ends, "no sequence ended with the tokenizer's eos; change the seeds"
    assert any(reason in GENERATION_EOS for _, reason in ends)
    assert any(reason in range(500, 530) for _, reason in ends)


def test_penalties_change_greedy_output_as_in_plain_vllm(many_eos, plain, ours):
    prompt = some_prompts(2)[1]
    cases = [
        case(prompt, max_tokens=40, **params)
        for params in ({}, {"repetition_penalty": 1.2}, {"presence_penalty": 2.0})
    ]
    expected, actual = plain(many_eos, batched=1024).generate(cases), ours(many_eos).generate(cases)
    assert actual == expected
    assert len({tuple(o.token_ids) for o in actual}) > 1


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs(count, many_eos, plain, ours):
    cases = [
        case(prompt, temperature=1.0, seed=i, max_tokens=12, logprobs=count)
        for i, prompt in enumerate(some_prompts(3, longest=20))
    ]
    for theirs, mine in zip(
        plain(many_eos, batched=1024).generate(cases), ours(many_eos).generate(cases), strict=True
    ):
        assert mine.token_ids == theirs.token_ids
        assert len(mine.logprobs) == len(mine.token_ids)
        for token, entry, table in zip(mine.token_ids, mine.logprobs, theirs.logprobs, strict=True):
            assert entry.token_ids[0] == token
            assert entry.rank == table[token].rank
            most_likely = entry.token_ids[1:]
            assert [table[t].rank for t in most_likely] == list(range(1, count + 1))
            assert set(entry.token_ids) == set(table)
            assert entry.logprobs == pytest.approx(
                [table[t].logprob for t in entry.token_ids], abs=1e-4
            )
