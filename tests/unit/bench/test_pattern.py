"""What a trace says of when KV goes to the stores."""

from __future__ import annotations

import pytest

from tarragon_hpc.bench import pattern
from tarragon_hpc.bench.checkpoint_report import as_table, summarize
from tarragon_hpc.observe.trace import ExpertCall, Frame, Trace
from tarragon_hpc.wire.kv import FETCH, PUT


def calls(count, *, every=0.010, takes=0.004):
    return [
        ExpertCall(i * every, i * every + 0.001, i * every + takes, 100, 50) for i in range(count)
    ]


def trace(*frames, count=10):
    return Trace("aw0.1", calls(count), [Frame(*frame) for frame in frames])


def test_bytes_posted_between_the_calls_and_during_them():
    found = pattern.measure(
        [trace((0.005, 300, PUT), (0.012, 100, PUT), (0.0139, 50, FETCH), (0.5, 999, PUT))]
    )
    assert (found.frames, found.checkpoint_bytes, found.idle_bytes) == (2, 400, 300)
    assert found.idle_share == pytest.approx(0.75)
    assert found.expert_bytes == 1500
    assert found.idle_time == pytest.approx(1 - 0.040 / 0.094)


def test_the_moment_a_call_ends_is_idle_and_the_one_it_begins_is_not():
    found = pattern.measure([trace((0.014, 1, PUT), (0.020, 2, PUT))])
    assert (found.idle_bytes, found.checkpoint_bytes) == (1, 3)


def test_traces_are_added_up_and_empty_ones_do_not_matter():
    one = trace((0.005, 300, PUT))
    found = pattern.measure([one, one, Trace("aw1.1", [], [])])
    assert (found.frames, found.expert_bytes) == (2, 3000)
    assert pattern.measure([]).idle_share is None


@pytest.mark.parametrize(("count", "first", "length"), [(40, 4, 12), (4, 0, 4), (3, 0, 0)])
def test_steps_from_the_middle(count, first, length):
    many = calls(count)
    found = pattern.some_steps(many, 4)
    assert len(found) == length
    assert not found or (many.index(found[0]) % 4, found) == (
        0,
        many[many.index(found[0]) :][:length],
    )
    assert not found or many.index(found[0]) >= first


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    for name, drawn in (("full", trace((0.005, 300, PUT))), ("empty", trace(count=0))):
        pattern.draw(drawn, 2, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


SPEEDS = {
    "none": [100.0, 50.0, 100.0],
    "ours": [99.0, 50.0, 101.0],
    "pause": [50.0, 20.0, 45.0],
    "unsummed": [100.0, 50.0, 100.0],
}


def test_ratios_are_taken_round_by_round():
    result = summarize(SPEEDS, {"aw_kv_sent_bytes": 5.0}, pattern.measure([trace()]), None)
    summary = result["summary"]
    assert summary["ours_vs_none"] == pytest.approx(1.0)
    assert (summary["ours_vs_none_min"], summary["ours_vs_none_max"]) == (0.99, 1.01)
    assert summary["pause_vs_none"] == pytest.approx(0.45)
    assert summary["ours_vs_unsummed"] == pytest.approx(1.0)
    assert summary["idle_share"] is None
    assert result["tokens_per_s"]["pause"] == {"median": 45.0, "min": 20.0, "max": 50.0}
    assert result["stores"] == {"aw_kv_sent_bytes": 5.0}


def test_a_contestant_that_was_left_out_is_not_compared():
    speeds = {name: SPEEDS[name] for name in ("none", "ours", "pause")}
    result = summarize(speeds, {}, pattern.measure([trace((0.005, 9, PUT))]), None)
    assert "ours_vs_unsummed" not in result["summary"]
    assert as_table(result).row_count
