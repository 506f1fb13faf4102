from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from tarragon_hpc.cli.bench import bench, broken, read_overrides, read_points, steady
from tarragon_hpc.errors import ConfigError, UserError


@pytest.fixture
def calls(monkeypatch):
    """Stands in for tarragon_hpc.bench.steady; a list of the options it was run with."""
    seen = []
    module = ModuleType("tarragon_hpc.bench.steady")

    def run(**options):
        seen.append(options)
        return {"summary": {"vs_dp_8": 1.25}}

    module.run = run
    monkeypatch.setitem(sys.modules, "tarragon_hpc.bench", ModuleType("tarragon_hpc.bench"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_options_that_were_given_are_passed_and_the_result_is_kept(calls, tmp_path):
    target = tmp_path / "out.json"
    steady(target, tmp_path / "model", rounds=3, expert_workers=None)
    assert calls == [{"model": str(tmp_path / "model"), "rounds": 3}]
    assert json.loads(target.read_text()) == {"summary": {"vs_dp_8": 1.25}}


def test_a_file_that_cannot_be_written_is_found_before_the_bench_runs(calls, tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        bench("steady", tmp_path / "no" / "out.json")
    assert calls == []


def test_overrides_become_sections():
    texts = ["attention.workers=4", "experts.batching.min_rows=8", "attention.kv_cache=64MiB"]
    assert read_overrides(texts) == {
        "attention": {"workers": 4, "kv_cache": "64MiB"},
        "experts": {"batching": {"min_rows": 8}},
    }
    assert read_overrides([]) is None


@pytest.mark.parametrize("texts", [["attention"], ["a=1", "a.b=2"]])
def test_overrides_that_are_none(texts):
    with pytest.raises(ConfigError):
        read_overrides(texts)


def test_points():
    assert read_points(None) is None
    assert read_points("16, 64") == (16, 64)
    for text in ("", "16,", "0", "-1", "x"):
        with pytest.raises(UserError, match="--points"):
            read_points(text)


@pytest.mark.parametrize(
    ("summary", "problem", "why"),
    [
        ({"vs_dp_8": 1.0}, None, None),
        ({"failed": 0, "changed": 0}, None, None),
        ({"failed": 1, "changed": 0}, None, "1 streams failed and 0 have other tokens"),
        ({"failed": 0, "changed": 2}, None, "0 streams failed and 2 have other tokens"),
        ({"failed": 0, "changed": 0}, "the head is gone", "the head is gone"),
    ],
)
def test_wrong_tokens_are_no_result(summary, problem, why):
    found = broken({"summary": summary, "problem": problem})
    assert found == why or (why is not None and found.startswith(why))
