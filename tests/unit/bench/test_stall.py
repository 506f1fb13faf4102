"""What streams and AWs show of a store that was stopped."""

from __future__ import annotations

import io
from dataclasses import asdict

import pytest
from rich.console import Console

from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.checkpoint_report import as_table, summarize
from tarragon_hpc.bench.pattern import Pattern
from tarragon_hpc.bench.stall import Moments, Sample, protected_after, summarize_stall

MOMENTS = Moments(0.0, 10.0, 20.0, 25.0)


def samples():
    return [
        Sample(5.0, 100 << 20, 4, True, 0),
        Sample(12.0, 101 << 20, 4, False, 3),
        Sample(15.0, 103 << 20, 4, False, 4),
        Sample(20.5, 102 << 20, 4, False, 2),
        Sample(21.0, 102 << 20, 0, True, 0),
        Sample(21.5, 102 << 20, 4, True, 0),
    ]


def stall(**stream):
    times = [1.0, 1.01, 1.02, 12.0, 12.03, 22.0, 22.01]
    gone = {"error": "gone"} if stream.get("failed") else {}
    cut = [Stream(0, 0.0, [1] * 3, times[:3]), Stream(0, 11.0, [1] * 2, times[3:5])]
    return summarize_stall(
        [*cut, Stream(0, 21.0, [1] * 2, times[5:], **gone)], samples(), MOMENTS, 7.0
    )


def test_phases():
    found = stall()
    assert found.gap_s == {
        "before": pytest.approx(0.01),
        "during": pytest.approx(0.03),
        "after": pytest.approx(0.01),
    }
    assert found.extra_ms == pytest.approx(20)
    assert found.rss == {"before": 100 << 20, "during": 103 << 20, "after": 102 << 20}
    assert (found.bare, found.skipped_rows, found.failed) == (4, 7.0, 0)
    assert found.protected_s == 1.5


def test_failures_are_counted():
    assert stall(failed=True).failed == 1


def test_never_protected_again_is_told_as_such():
    assert protected_after(samples()[:4], 20.0) is None


def test_nothing_to_see():
    found = summarize_stall([], [], MOMENTS, 0.0)
    assert (found.extra_ms, found.rss["during"], found.protected_s) == (None, None, None)


def test_a_table():
    speeds = {"none": [1.0], "ours": [1.0]}
    for measured in (stall(), summarize_stall([], [], MOMENTS, 0.0)):
        result = summarize(speeds, {}, Pattern(0, 0, 0, 0, 0.5), measured)
        result["stall"] = asdict(measured)
        console = Console(width=120, file=io.StringIO())
        console.print(as_table(result))
        assert "stopped for 10 s" in console.file.getvalue()
    assert result["summary"]["stall_rss_growth_mib"] is None
