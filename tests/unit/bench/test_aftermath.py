"""Streams that the loss of an AW hit, and the others; restored requests and the rest."""

from __future__ import annotations

import pytest

from tarragon_hpc.bench import aftermath
from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.failover_incidents import (
    gaps_of_hit,
    incidents,
    summarize_incidents,
)
from tarragon_hpc.bench.injection import Injection


def stream(prompt, name, start, *, pause_at=None, pause=0.0, count=100, step=0.01):
    times = [start + i * step + (pause if pause_at and i >= pause_at else 0) for i in range(count)]
    return Stream(prompt, start, [prompt] * count, times, done=True, id=name)


def line(name, mono, **more):
    fields = {
        "event": "request resumed", "mono": mono, "id": name, "left": "aw0.1", "worker": "aw1",
        "incarnation": 1, "restored": 60, "cached": 0, "computed": 1, "nbytes": 6000,
        "seconds": 0.01, "gap_s": 0.04, "reason": "",
    }  # fmt: skip
    return fields | more


def injection(at, over_at, **more):
    return Injection("kill", "aw0.1", at, over_at, 2.0, {"seconds": {}}, **more)


def test_only_lines_about_resumed_requests_count():
    lines = [{"event": "worker lost", "mono": 1.0}, line("a", 2.0), line("b", 3.0)]
    found = aftermath.resumptions(lines)
    assert [(r.id, r.worker, r.left) for r in found] == [
        ("a", "aw1.1", "aw0.1"),
        ("b", "aw1.1", "aw0.1"),
    ]
    assert aftermath.within(found, 1.5, 2.5) == found[:1]


def test_how_requests_went_on():
    lines = [
        line("a", 1.0),
        line("b", 1.0, computed=3),
        line("c", 1.0, restored=0, computed=64, nbytes=0, reason="unknown"),
    ]
    told = aftermath.describe(aftermath.resumptions(lines))
    expected = {
        "resumed": 3, "restored": 2, "anew": 1, "exact": 1, "computed_p50": 1, "computed_max": 3,
        "computed": {"1": 1, "3": 1}, "nbytes": 12000, "reasons": {"unknown": 1},
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected


def test_nothing_went_on():
    told = aftermath.describe([])
    assert (told["resumed"], told["computed_p50"], told["seconds_p99"]) == (0, None, None)


def test_usual_gaps_are_the_medians_of_the_longest():
    steady = [stream(5, "", 0.0, pause_at=9, pause=p) for p in (0.0, 0.01, 0.09)]
    assert aftermath.usual_gaps(steady) == {5: pytest.approx(0.02)}
    assert aftermath.steady_excess(steady, {5: 0.02}) == [0, 0, pytest.approx(0.08)]


def test_excess_is_that_of_live_streams_that_were_not_hit():
    streams = [
        stream(0, "hit", 10.0, pause_at=51, pause=1.0),
        stream(1, "held up", 10.0, pause_at=51, pause=0.05),
        stream(2, "faster than usual", 10.0),
        stream(3, "of an unknown prompt", 10.0),
        stream(1, "later", 10.6),
    ]
    usual = {0: 0.01, 1: 0.02, 2: 0.03}
    found = aftermath.excess(streams, usual, 10.5, 11.0, {"hit"})
    assert found == [pytest.approx(0.04), 0.0]


def test_faults_that_overlap_are_one_incident():
    resumed = aftermath.resumptions([line("a", 10.3), line("b", 12.2), line("c", 30.0)])
    found = incidents(
        [injection(12.0, 15.0), injection(10.0, 15.0), injection(20.0, 24.0)], resumed
    )
    assert [(i.start, i.end, i.hit) for i in found] == [
        (10.0, 15.0, {"a", "b"}),
        (20.0, 24.0, set()),
    ]
    assert [i.moved for i in found] == [12.2, 20.0]


def test_gaps_are_those_of_streams_that_were_hit_whenever_they_began():
    streams = [
        stream(0, "a", 10.0, pause_at=51, pause=0.3),
        stream(0, "b", 11.9, pause_at=31, pause=0.1),
        stream(0, "other", 10.0, pause_at=51, pause=5.0),
    ]
    resumed = aftermath.resumptions([line("a", 10.81), line("b", 12.3)])
    found = incidents([injection(10.5, 15.0), injection(12.1, 15.0)], resumed)
    assert gaps_of_hit(streams, found) == pytest.approx([0.31, 0.11])


def test_where_an_ew_was_killed_too_nobody_counts_as_spared():
    steady = [stream(1, "s", 0.0)]
    disturbed = [stream(1, "near", 10.0, pause_at=52, pause=0.02)]
    faults = [injection(10.5, 15.0, also="ew0.1"), injection(20.0, 21.0)]
    numbers = summarize_incidents(steady, disturbed, faults, [])
    assert (numbers["others"], numbers["others_excess_ms_max"]) == (0, None)
    faults[0] = injection(10.5, 15.0)
    assert summarize_incidents(steady, disturbed, faults, [])["others"] == 1


def test_the_summary_tells_those_that_were_hit_from_the_others():
    steady = [stream(p, f"s{p}", 0.0) for p in range(3)]
    disturbed = [
        stream(0, "hit", 10.0, pause_at=51, pause=0.3),
        stream(1, "near", 10.0, pause_at=52, pause=0.02),
        stream(2, "late", 10.0, pause_at=90, pause=0.05),
    ]
    resumed = aftermath.resumptions([line("hit", 10.81)])
    faults = [injection(10.5, 15.0, protected_s=5.0)]
    numbers = summarize_incidents(steady, disturbed, faults, resumed)
    expected = {
        "others": 2, "others_excess_ms_max": 50.0, "failover_excess_ms_max": 20.0,
        "steady_excess_ms_max": 0.0, "others_above_limit": 1, "failover_above_limit": 0,
        "moves_exact": 1, "protected_s_p50": 5.0, "never_protected": 0,
    }  # fmt: skip
    assert {k: numbers[k] for k in expected} == {k: pytest.approx(v) for k, v in expected.items()}
