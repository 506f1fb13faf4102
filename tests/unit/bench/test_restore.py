"""The restoration bench without a service."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tarragon_hpc.bench import restore
from tarragon_hpc.bench.restore_report import STRATEGIES, Sample, as_table, summarize
from tarragon_hpc.bench.restore_run import _Watch
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError, UserError
from tarragon_hpc.models.tiny import write_tiny

POINTS = (16, 64)
SECONDS = {"ours": (0.01, 0.012), "parallel": (0.02, 0.06), "sequential": (0.1, 0.6)}


def samples():
    found = []
    for strategy in STRATEGIES:
        for point, seconds in zip(POINTS, SECONDS[strategy], strict=True):
            ours = strategy == "ours"
            nbytes = 1000 * point / (8 if ours else 1)
            found += [
                Sample(
                    strategy, point, seconds * factor, nbytes, seconds / 2,
                    1 if ours else point + 32, point + 31 if ours else 0,
                )
                for factor in (1, 3, 0.5)
            ]  # fmt: skip
    return found


def test_summary():
    summary = summarize(samples(), POINTS)["summary"]
    expected = {
        "flat": 1.2, "bytes_ratio": 0.125, "vs_parallel_64": 5, "vs_sequential_64": 50,
        "vs_parallel_16": 2, "ours_anew": 0, "cpu_vs_parallel_64": 5, "ours_ms_64": 12,
    }  # fmt: skip
    assert {k: summary[k] for k in expected} == {k: pytest.approx(v) for k, v in expected.items()}


def test_what_was_not_restored_after_all_is_counted():
    found = samples()
    found[0] = Sample("ours", 16, 0.05, 0.0, 0.0, 48, 0, reason="unknown")
    assert summarize(found, POINTS)["summary"]["ours_anew"] == 1


def test_a_table_and_a_picture(tmp_path):
    result = summarize(samples(), POINTS)
    console = Console(width=120, file=io.StringIO())
    console.print(as_table(result, POINTS))
    assert "50.0×" in console.file.getvalue()
    pytest.importorskip("matplotlib")
    from tarragon_hpc.bench.restore_figure import draw

    draw(result, POINTS, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_cpu_is_counted_until_a_token_is_there(monkeypatch):
    used = iter([5.0, 5.1, 5.3, 5.9])
    monkeypatch.setattr("tarragon_hpc.bench.restore_run._cpu", lambda pids: next(used))
    watch = _Watch(2)
    for token in (1, 2):
        watch.stream.take([token], 0.0)
        watch.heard()
        assert watch.reached.is_set() == (token == 2)
    watch.look_at([77])
    for tokens in ([3], [4, 5], [6]):
        watch.stream.take(tokens, 0.0)
        watch.heard()
    assert [watch.spent(n) for n in (2, 3, 4, 5)] == pytest.approx([0.1, 0.3, 0.3, 0.9])


@pytest.mark.parametrize("name", ["ours", "replay"])
def test_both_are_configurations(name):
    config = load_config(restore.services("m", {"attention": {"block_size": 16}})[name])
    assert config.attention.block_size == 16
    assert config.checkpoint.stores == (name == "ours")


def test_points_that_do_not_fit_are_refused(tmp_path):
    model = str(write_tiny("mixtral", tmp_path / "m", max_len=128))
    with pytest.raises(UserError, match="--points 16…100: allowed are 1 to 92"):
        restore.run(model, points=(100, 16))


def test_a_key_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="attention.wrokers"):
        restore.run("m", overrides={"attention": {"wrokers": 3}})
