from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from tarragon_hpc.cli.bench import bench, steady
from tarragon_hpc.errors import UserError


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
