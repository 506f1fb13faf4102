"""The arithmetic of `bench overhead`."""

from __future__ import annotations

import pytest

from tarragon_hpc.bench.overhead import OFF, ON, summarize
from tarragon_hpc.config import load_config


def test_ratios_are_taken_round_by_round():
    speeds = {("on", 8): [99.0, 50.0, 101.0], ("off", 8): [100.0, 51.0, 100.0]}
    result = summarize(speeds, (8,))
    assert result["ratios"]["8"] == pytest.approx([0.99, 50 / 51, 1.01])
    assert result["summary"] == {"on_vs_off_8": pytest.approx(0.99)}
    assert result["tokens_per_s"]["off_8"] == {"median": 100.0, "min": 51.0, "max": 100.0}


@pytest.mark.parametrize("sections", [ON, OFF])
def test_both_are_configurations(sections):
    load_config({"model": {"path": "m"}, **sections})
