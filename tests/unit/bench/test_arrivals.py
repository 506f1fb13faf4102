"""Gaps, throughput and comparisons, on made-up arrivals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.bench import arrivals as ar
from tarragon_hpc.bench.arrivals import Stream, Tally


def stream(*times, prompt=0, tokens=None, done=True, error=None):
    tokens = list(range(len(times))) if tokens is None else tokens
    return Stream(prompt, 0.0, tokens, list(times), done, error)


def test_tokens_that_arrive_together_have_one_time():
    s = Stream(0, 0.0)
    s.take([1, 2], 5.0)
    s.take([3], 6.0)
    assert (s.tokens, s.times) == ([1, 2, 3], [5.0, 5.0, 6.0])


def test_live_is_between_the_first_and_the_last_token():
    s = stream(1, 2, 3)
    assert [s.live(at) for at in (0.5, 1, 2.5, 3)] == [False, True, True, False]
    assert not stream().live(0)


@pytest.mark.parametrize(
    ("start", "end", "gap"),
    [(0, 10, 4), (1.5, 1.8, 1), (2.5, 3, 4), (7, 10, 1), (8, 10, None), (0, 1, None)],
)
def test_a_gap_counts_if_some_of_it_lies_within(start, end, gap):
    assert ar.longest_gap(stream(1, 2, 6, 7, 8), start, end) == gap


def test_only_streams_that_were_live_at_the_fault_count():
    streams = [stream(1, 2, 5), stream(4, 9), stream(1, 2), stream(3, 3.5)]
    assert ar.gaps_of_live(streams, 3.2, 6) == [3, 0.5]


@pytest.mark.parametrize(("q", "value"), [(0, 1), (50, 2), (51, 3), (99, 4), (100, 4)])
def test_percentiles_are_values_that_occurred(q, value):
    assert ar.percentile([4, 1, 3, 2], q) == value


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 100))
def test_a_percentile_is_not_exceeded_by_so_many(values, q):
    found = ar.percentile(values, q)
    assert found in values
    assert sum(v <= found for v in values) >= q / 100 * len(values) - 1e-6


def test_nothing_has_no_percentile():
    assert ar.percentile([], 50) is None


def test_throughput_by_bins_and_between_moments():
    streams = [stream(0.1, 0.2, 1.1), stream(0.3, 2.9)]
    assert ar.throughput(streams, 0, 2.5, 1.0) == [(0.5, 3.0), (1.5, 1.0)]
    assert ar.rate(streams, 0, 2) == 2.0
    assert ar.rate(streams, 1, 1) == 0.0


def test_gaps_over_time():
    assert ar.gaps_over_time([stream(0, 3), stream(1, 2)]) == [(2, 1), (3, 3)]


def test_the_first_good_answer_is_the_right_one():
    streams = [
        stream(1, tokens=[9], error="no"), stream(1, tokens=[7]), stream(1, tokens=[8]),
        stream(1, prompt=1, tokens=[5], done=False),
    ]  # fmt: skip
    assert ar.answers(streams) == {0: [7]}


def test_failed_and_changed_are_told_apart():
    streams = [
        stream(1, tokens=[7]), stream(1, tokens=[8]), stream(1, tokens=[7], error="ew0 is gone"),
        stream(1, tokens=[7], done=False), stream(1, prompt=3, tokens=[7]),
    ]  # fmt: skip
    assert ar.compare(streams, {0: [7]}) == Tally(streams=5, failed=2, changed=2)


def test_a_restarted_stream_waited_until_its_next_token():
    cut = [
        stream(1, 2, prompt=0, done=False),
        stream(1, prompt=1),
        stream(1, 2, prompt=2, done=False),
        stream(prompt=3, done=False),
    ]
    after = {
        0: stream(20, 21, 22, prompt=0),
        1: stream(20, 21, prompt=1),
        2: stream(20, prompt=2),
        3: stream(20, prompt=3),
    }
    assert ar.restart_gaps(cut, after) == [20]
