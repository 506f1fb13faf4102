"""Structured output: as in plain vLLM, beside the engine's thread, and after a resumption."""

from __future__ import annotations

import concurrent.futures
import json
import random
import re
import threading

import pytest

from tarragon_hpc.wire.common import StructureSpec

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["color", "n", "ok"],
    "additionalProperties": False,
}
CHOICES = ["yes", 'no, "really"']
REGEX = "[a-c]{3,9}-[0-9]{1,20}x"
GRAMMAR = 'root ::= "a" ("b" | "c")+ "d"'
NO_OUTPUT = "root ::= a\na ::= root"
DEAD_END = 'root ::= "a" more\nmore ::= more "b"'


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(60, 1024) for _ in range(length)]


def structured(tokens, kind, value=None, **params):
    """The case for our engine, and the one for plain vLLM."""
    from vllm.sampling_params import StructuredOutputsParams

    from tests.attention.conftest import Case

    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    theirs = StructuredOutputsParams(**{kind: True if value is None else value})
    return (
        Case(tokens, {"max_tokens": 150, **params, "structure": StructureSpec(kind, text)}),
        Case(tokens, {"max_tokens": 150, **params, "structured_outputs": theirs}),
    )


def case(tokens, kind, value=None, **params):
    return structured(tokens, kind, value, **params)[0]


def free(tokens, **params):
    from tests.attention.conftest import Case

    return Case(tokens, params)


@pytest.fixture
def engine(tiny_models, ours):
    engine = ours(tiny_models("mixtral"))
    yield engine
    assert not engine.engine.has_work
    assert not engine.engine._sequences
    assert not engine.engine._grammars._waiting


@pytest.fixture(scope="module")
def text(tiny_models):
    """Token ids to text, special tokens left out."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tiny_models("mixtral") / "tokenizer.json")).decode


@pytest.fixture
def held(engine, monkeypatch):
    """Grammars are not made until this event is set."""
    grammars, go = engine.engine._grammars, threading.Event()
    make = grammars._make
    monkeypatch.setattr(grammars, "_make", lambda request: go.wait(30) and make(request))
    yield go
    go.set()


def test_output_is_plain_vllms_and_follows_its_structure(engine, tiny_models, plain, text):
    lengths = [1, 20, 55, 150]  # a step takes 64 tokens
    wanted = [("json", SCHEMA), ("json_object", None), ("regex", REGEX), ("choice", CHOICES),
              ("grammar", GRAMMAR)]  # fmt: skip
    pairs = [
        structured(prompt(i, length), *want) for i, length in enumerate(lengths) for want in wanted
    ]
    pairs += [(c, c) for c in (free(prompt(9, 30)), free(prompt(10, 100)))]
    mine = engine.generate([a for a, _ in pairs])
    theirs = plain(tiny_models("mixtral")).generate([b for _, b in pairs])
    assert mine == theirs
    texts = [text(o.token_ids) for o in mine if o.finish == "stop"]
    documents = [json.loads(t) for t in texts if t.startswith("{")]
    records = [d for d in documents if d.keys() == SCHEMA["properties"].keys()]
    assert len(records) == len(lengths), "not all documents were finished; change the prompts"
    for record in records:
        assert record["color"] in ("red", "green")
        assert type(record["ok"]) is bool
        assert record["n"] in range(100)
    assert sum(t in CHOICES for t in texts) == len(lengths)
    assert sum(bool(re.fullmatch(REGEX, t)) for t in texts) == len(lengths)
    assert sum(bool(re.fullmatch("a[bc]+d", t)) for t in texts) == len(lengths)


def test_with_seeds_penalties_log_probabilities_and_stops(engine, tiny_models, plain):
    variants = [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.0, "seed": 6, "min_tokens": 12, "frequency_penalty": 0.5},
        {"ignore_eos": True, "max_tokens": 20},
        {"stop_token_ids": [7, 88], "repetition_penalty": 1.3},
    ]
    pairs = [
        structured(prompt(20 + i, 100), *want, **params)
        for i, params in enumerate(variants)
        for want in (("json", SCHEMA), ("choice", CHOICES))
    ]
    scored = structured(prompt(30, 70), "choice", CHOICES, temperature=1.0, seed=1, logprobs=3)
    mine = engine.generate([a for a, _ in [*pairs, scored]])
    theirs = plain(tiny_models("mixtral"), batched=1024).generate([b for _, b in [*pairs, scored]])
    assert mine[:-1] == theirs[:-1]
    assert mine[-1].token_ids == theirs[-1].token_ids
    for entry, table in zip(mine[-1].logprobs, theirs[-1].logprobs, strict=True):
        assert entry.logprobs[0] == pytest.approx(table[entry.token_ids[0]].logprob, abs=1e-4)
    assert mine[-1].logprobs[-1].logprobs[0] == 0.0, "nothing but the end was allowed there"


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("json", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum greater than maximum"),
        ("json", {"type": "number", "multipleOf": 3}, "features not supported by xgrammar"),
        ("json", {"$ref": "#/nowhere"}, "Cannot find field nowhere"),
        ("json", {"type": "strin"}, 'Unsupported type "strin"'),
        ("regex", "(((", "parenthesis is not closed"),
        ("regex", r"(a)\1", "Backreference is not supported"),
        ("grammar", "root ::= nobody", 'Rule "nobody" is not defined'),
        ("grammar", NO_OUTPUT, "allows no output at all"),
        ("grammar", DEAD_END, "came to where it allows no token"),
    ],
)
def test_an_impossible_structure_is_refused_and_nobody_else_notices(engine, kind, value, why):
    others = [free(prompt(40, 30), max_tokens=12), case(prompt(41, 20), "choice", CHOICES)]
    expected = engine.generate(others)
    for i, other in enumerate(others):
        engine.add(other, str(i))
    spec = StructureSpec(kind, value if isinstance(value, str) else json.dumps(value), "the.field")
    engine.add(free(prompt(42, 10), structure=spec, max_tokens=12), "bad")
    refused, outputs = {}, {"0": [], "1": []}
    while engine.engine.has_work:
        step = engine.engine.step()
        refused |= step.refused
        for delta in step.tokens:
            outputs.get(delta.request, []).extend(delta.token_ids)
    (error,) = refused.values()
    assert error.param == "the.field"
    assert str(error).startswith("the.field: ")
    assert why in str(error)
    assert "/cpp/" not in str(error)
    assert list(outputs.values()) == [o.token_ids for o in expected]


def test_without_a_tokenizer_structures_are_refused(engine, monkeypatch):
    monkeypatch.setattr(engine.engine._grammars, "_tokenizer", None)
    engine.add(case([70, 71], "json_object"), "x")
    refused = {}
    while engine.engine.has_work:
        refused |= engine.engine.step().refused
    assert "needs a tokenizer" in str(refused["x"])


def test_a_structure_no_backend_may_see_is_refused_at_once(engine):
    from tarragon_hpc.errors import RequestError

    with pytest.raises(RequestError, match="^structure: must be a JSON schema"):
        engine.add(case([70, 71], "json", "[1]"))


def test_other_sequences_go_on_while_a_grammar_is_made(engine, held):
    expected = case(prompt(50, 20), "choice", CHOICES)
    engine.add(expected, "waits")
    engine.add(free(prompt(51, 20), max_tokens=9), "runs")
    seen = []
    while "runs" in engine.engine._sequences:
        seen += [delta.request for delta in engine.engine.step().tokens]
    assert seen == ["runs"] * 9
    held.set()
    assert engine.finish()["waits"] == engine.generate([expected])[0]


def test_an_engine_that_only_waits_for_grammars_says_so(engine, held):
    engine.add(case([70, 71], "choice", CHOICES), "a")
    engine.add(case([72, 73], "choice", CHOICES), "b")
    step = engine.engine.step()
    assert (step.tokens, step.idle) == ([], True)
    engine.add(free([74, 75], max_tokens=2), "c")
    step = engine.engine.step()
    assert ([delta.request for delta in step.tokens], step.idle) == (["c"], False)
    engine.engine.abort(["a"])
    held.set()
    assert engine.finish().keys() == {"b", "c"}


def test_a_grammar_that_takes_too_long_is_refused(engine, held, monkeypatch):
    monkeypatch.setattr("tarragon_hpc.attention.structured.COMPILE_S", 0.0)
    engine.add(case([70, 71], "choice", CHOICES), "slow")
    assert "could not be made into a grammar within 0 s" in str(
        engine.engine.step().refused["slow"]
    )
    assert not engine.engine._sequences
    engine.engine.step()


def resume(engine, case, tokens, request, *, made=False):
    """Add it as one whose client has `tokens` already, computed anew as if they were a prompt.

    made: not before its grammar is.
    """
    left = case.params["max_tokens"] - len(tokens)
    params = {**case.params, "max_tokens": left}
    engine.add(free(case.prompt + tokens, **params), request)
    added = engine.engine._core.scheduler.requests[engine.engine._sequences[request].internal]
    if made:
        concurrent.futures.wait([added.structured_output_request._grammar])
    engine.engine._grammars.advance(added, tokens)


@pytest.mark.parametrize("pending", [True, False], ids=["being made", "made"])
def test_a_resumed_sequence_goes_on_within_its_structure(engine, held, pending):
    cases = [case(prompt(60, 40), "json", SCHEMA), case(prompt(61, 30), "regex", REGEX),
             case(prompt(62, 30), "choice", CHOICES, ignore_eos=True, max_tokens=12)]  # fmt: skip
    held.set()
    wholes = [o.token_ids for o in engine.generate(cases)]
    cuts = [(i, k) for i, whole in enumerate(wholes)
            for k in sorted({0, 1, 2, 7, len(whole) // 2, len(whole) - 1})]  # fmt: skip
    if pending:
        held.clear()
    for i, k in cuts:
        resume(engine, cases[i], wholes[i][:k], f"{i} {k}", made=not pending)
    held.set()
    outputs = engine.finish()
    for i, k in cuts:
        assert outputs[f"{i} {k}"].token_ids == wholes[i][k:], f"case {i} resumed after {k}"


def test_tokens_that_do_not_fit_the_structure_are_refused(engine):
    resume(engine, case([70, 71], "choice", CHOICES), [500], "x")
    refused = {}
    while engine.engine.has_work:
        refused |= engine.engine.step().refused
    assert "does not fit what has been generated so far" in str(refused["x"])
