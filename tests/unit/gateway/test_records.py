"""The lines of the request log, and what they add up to."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import ClusterError, Overloaded, RequestError, TarragonError, Unavailable
from tarragon_hpc.gateway.errors import explain
from tarragon_hpc.gateway.records import (
    Ended,
    Forgotten,
    Item,
    Kept,
    Memory,
    Opened,
    Produced,
    encode,
    item,
    merge,
    recall,
    record,
    restated,
)
from tarragon_hpc.gateway.tokenlog import TokenLog
from tarragon_hpc.wire.common import SamplingSpec, StructureSpec, TokenDelta, TokenLogprobs

SPEC = SamplingSpec(
    max_tokens=8, seed=2**63 - 1, stop_token_ids=[4], structure=StructureSpec("regex", "a|é")
)


def opened(*names, prompts=([1, 2],), logprobs=None, **more):
    spec = msgspec.structs.replace(SPEC, logprobs=logprobs)
    return Opened(
        id=f"cmpl-{names[0]}",
        created=7,
        kind="completions",
        body=msgspec.Raw(b'{"prompt": "hi"}'),
        holder="00ff",
        names=["x"],
        prompts=list(prompts),
        sequences=list(names),
        sampling=[spec] * len(names),
        **more,
    )


def data(*lines):
    return b"".join(map(encode, lines))


def read(*lines):
    memory = Memory()
    assert memory.read(data(*lines)) == []
    return memory.kept


def test_everything_comes_back_as_it_was_written():
    request = opened("a", "b", "c", "d", prompts=([1], [2, 3]), key="k", logprobs=1)
    scores = [TokenLogprobs([5, 6], [-0.1, -1 / 3], 1)]
    kept = read(request, Produced([Item("c", 0, [5], "stop", 4, 2, scores)]))["a"]
    assert kept.opened == request
    assert [kept.opened.prompt(i) for i in range(4)] == [[1], [1], [2, 3], [2, 3]]
    log = kept.logs[2]
    assert (log.token_ids, log.logprobs, log.finish, log.stop_reason) == ([5], scores, "stop", 4)
    assert (log.masked, log.finish_alone, log.arrived) == (2, False, None)


def test_infinite_log_probabilities_are_what_clients_are_told():
    log = TokenLog(with_logprobs=True)
    delta = TokenDelta("a", 0, [5], [TokenLogprobs([5, 6], [-0.5, -math.inf], 1)])
    log.append(delta)
    kept = read(opened("a", logprobs=1), Produced([item(delta, 0, log)]))["a"]
    assert kept.logs[0].logprobs == [TokenLogprobs([5, 6], [-0.5, -9999.0], 1)]


def test_what_is_forgotten_is_gone_and_what_is_said_again_begins_anew():
    one, two = opened("a"), opened("b")
    tokens = Produced([Item("a", 0, [5]), Item("b", 0, [6, 7])])
    assert list(read(one, two, tokens, Forgotten("a"))) == ["b"]
    again = read(one, tokens.__class__([Item("a", 0, [9])]), one, Produced([Item("a", 0, [5])]))
    assert again["a"].logs[0].token_ids == [5]
    ended = read(one, Ended("a", record(Unavailable("no"))), one)
    assert ended["a"].ended == {}


def test_damage_is_named_and_costs_only_what_it_hides():
    lines = [
        encode(opened("a", "b")),
        encode(Produced([Item("a", 0, [1]), Item("b", 0, [1])])),
        b"\x00\xff garbage\n",
        encode(Produced([Item("a", 2, [3])])),  # a hole
        encode(Produced([Item("b", 1, [2]), Item("z", 0, [1])])),
        encode(Produced([Item("b", 2, [3])])).replace(b"[3]", b"[4]"),
        encode(Produced([Item("b", 2, [3], "length")])),
    ]
    kept, wrong = merge([("requests.1.jsonl", b"".join(lines))])
    assert [log.token_ids for log in kept[0].logs] == [[1], [1, 2, 3]]
    assert [w.split(":")[1].strip() for w in wrong] == [
        "line 3 is damaged and left out", "line 4", "line 5", "line 6 is damaged and left out"
    ]  # fmt: skip
    assert all(w.startswith("requests.1.jsonl: ") for w in wrong)


@pytest.mark.parametrize("names", [(), ("a", "b", "c")])
def test_an_opening_that_does_not_fit_itself(names):
    bad = msgspec.structs.replace(opened("a", prompts=([1], [2])), sequences=list(names))
    kept, wrong = merge([("f", data(bad))])
    assert (kept, len(wrong)) == ([], 1)


@pytest.mark.parametrize(
    "error",
    [
        RequestError("prompt: no", param="prompt", code="c", status=413),
        Overloaded("full"),
        Unavailable("gone"),
        ClusterError("odd"),
    ],
)
def test_an_error_is_told_again_alike(error):
    kept = read(opened("a"), Ended("a", record(error)))["a"]
    problem = kept.ended[0].problem
    assert explain(recall(problem)) == explain(error)
    assert isinstance(recall(problem), TarragonError)


deltas = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.booleans()), min_size=0, max_size=6
)


@given(deltas, st.sampled_from([None, "with", "alone"]), st.integers(0, 2), st.booleans())
def test_what_is_restated_adds_up_to_the_same(parts, finish, masked, scored):
    """However the tokens came: log → lines → log is the same, and so is what was written live."""
    log, live = TokenLog(with_logprobs=scored), []
    for i, (count, left_out, _) in enumerate(parts):
        had = len(log.token_ids)
        scores = [TokenLogprobs([t], [-t / 7], 1) for t in range(had, had + count)]
        last = "length" if finish == "with" and i == len(parts) - 1 else None
        delta = TokenDelta(
            "a", had, list(range(had, had + count)), scores if scored else None, last,
            masked=left_out,
        )  # fmt: skip
        log.append(delta)
        live.append(Produced([item(delta, had, log)]))
    if finish == "alone":
        had = len(log.token_ids)
        delta = TokenDelta("a", had, [], [] if scored else None, "stop", 3, masked)
        log.append(delta)
        live.append(Produced([item(delta, had, log)]))
    request = opened("a", logprobs=1 if scored else None)
    kept = Kept(request, [log])
    assert read(request, *live)["a"].logs == [log]
    assert read(*restated(kept))["a"].logs == [log]
    assert read(*restated(kept), *live)["a"].logs == [log]
