"""The token log: every token once, in order, whatever arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.gateway.tokenlog import TokenLog, Verdict
from tarragon_hpc.wire.common import TokenDelta, TokenLogprobs


def delta(index, tokens, finish=None, **kw):
    return TokenDelta("r", index, list(tokens), finish=finish, **kw)


def lp(token):
    return TokenLogprobs([token], [-0.5], 1)


@pytest.mark.parametrize(
    ("message", "verdict", "tokens"),
    [
        (delta(3, [4, 5]), Verdict.NEW, [1, 2, 3, 4, 5]),
        (delta(2, [3, 4]), Verdict.NEW, [1, 2, 3, 4]),
        (delta(0, [1, 2, 3, 4]), Verdict.NEW, [1, 2, 3, 4]),
        (delta(0, [1, 2, 3]), Verdict.DUPLICATE, [1, 2, 3]),
        (delta(0, [1]), Verdict.DUPLICATE, [1, 2, 3]),
        (delta(3, []), Verdict.DUPLICATE, [1, 2, 3]),
        (delta(1, [], "stop"), Verdict.DUPLICATE, [1, 2, 3]),
        (delta(4, [5]), Verdict.GAP, [1, 2, 3]),
        (delta(2, [9, 4]), Verdict.CONFLICT, [1, 2, 3]),
        (delta(-1, [1]), Verdict.MALFORMED, [1, 2, 3]),
    ],
)
def test_verdicts(message, verdict, tokens):
    log = TokenLog()
    log.append(delta(0, [1, 2, 3]))
    assert log.judge(message) is verdict
    assert log.append(message) is verdict
    assert log.token_ids == tokens
    assert log.finish is None


def test_finish_comes_with_or_after_the_last_token():
    log = TokenLog()
    assert log.append(delta(0, [1], "stop", stop_reason=7)) is Verdict.NEW
    assert (log.finish, log.stop_reason) == ("stop", 7)
    assert log.append(delta(0, [1], "stop", stop_reason=7)) is Verdict.DUPLICATE
    assert log.append(delta(1, [2])) is Verdict.CONFLICT

    log = TokenLog()
    log.append(delta(0, [1]))
    assert log.append(delta(1, [], "length")) is Verdict.NEW
    assert log.finish == "length"


def test_logprobs_stay_aligned_with_tokens():
    log = TokenLog(with_logprobs=True)
    assert log.append(delta(0, [1, 2])) is Verdict.MALFORMED
    assert log.append(delta(0, [1, 2], logprobs=[lp(1)])) is Verdict.MALFORMED
    assert log.append(delta(0, [1, 2], logprobs=[lp(1), lp(2)])) is Verdict.NEW
    assert log.append(delta(1, [2, 3], logprobs=[lp(2), lp(3)])) is Verdict.NEW
    assert log.append(delta(3, [], "stop")) is Verdict.NEW
    assert [entry.token_ids for entry in log.logprobs] == [[1], [2], [3]]


@given(
    tokens=st.lists(st.integers(0, 9), max_size=12),
    pieces=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 6)), max_size=40),
)
def test_any_mix_of_true_deltas_leaves_a_prefix(tokens, pieces):
    """Deltas cut from the true output, in any order and number, never leave anything else."""
    log = TokenLog()
    for index, count in pieces:
        part = tokens[index : index + count]
        finish = "length" if index + count >= len(tokens) and index <= len(tokens) else None
        before = len(log.token_ids)
        verdict = log.append(delta(index, part, finish))
        assert (verdict is Verdict.GAP) == (index > before)
        assert verdict is not Verdict.CONFLICT
        assert log.token_ids == tokens[: len(log.token_ids)]
        assert len(log.token_ids) >= before
        assert log.finish is None or log.token_ids == tokens
