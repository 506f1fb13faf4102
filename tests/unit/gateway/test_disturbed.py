"""What clients and metrics are told of experts that were left out, and of pauses."""

from __future__ import annotations

import json

import pytest

from tarragon_hpc.gateway.tokenlog import TokenLog
from tarragon_hpc.wire.common import TokenDelta

CALLS = "masked_expert_calls"


def metric(http, name):
    lines = http.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[1])


def post(http, path, **body):
    answer = http.post(f"/v1/{path}", json={"max_tokens": 3, "ignore_eos": True, **body})
    assert answer.status_code == 200, answer.text
    return answer


PATHS = [
    ("completions", {"prompt": "hi"}),
    ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_left_out_calls_are_in_the_usage(gateway, http, path, body):
    before = metric(http, "tarragon_masked_expert_calls_total")
    gateway.worker.masked = 2
    assert post(http, path, **body).json()["usage"][CALLS] == 6
    assert post(http, path, n=2, temperature=1, **body).json()["usage"][CALLS] == 12
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last, _, _ = post(http, path, **options, **body).text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["usage"][CALLS] == 6
    assert metric(http, "tarragon_masked_expert_calls_total") == before + 24


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_nothing_is_said_if_none_was(gateway, http, path, body):
    assert CALLS not in post(http, path, **body).json()["usage"]


def test_the_longest_gap_of_a_stream_is_measured_at_its_end(gateway, http):
    before = metric(http, "tarragon_stream_gap_seconds_count")
    post(http, "completions", prompt="hi")
    post(http, "completions", prompt="hi", n=2, temperature=1)
    gateway.wait_until(lambda: gateway.sessions.stats().open == 0)
    assert metric(http, "tarragon_stream_gap_seconds_count") == before + 3
    assert gateway.sessions.stats().longest_gap_s > 0


def test_gaps_are_between_arrivals_of_new_tokens():
    log = TokenLog()
    log.append(TokenDelta("r", 0, [1]), 5.0)
    assert log.gap_s is None
    log.append(TokenDelta("r", 1, [2], masked=3), 5.5)
    log.append(TokenDelta("r", 2, [3, 4], masked=1), 5.6)
    log.append(TokenDelta("r", 2, [3], masked=1), 9.0)
    log.append(TokenDelta("r", 4, [], finish="length"), 9.0)
    assert log.gap_s == 0.5
    assert log.masked == 4
