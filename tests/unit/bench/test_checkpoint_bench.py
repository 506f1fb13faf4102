"""What `bench checkpoint` runs and refuses; its numbers are in test_pattern.py, test_stall.py."""

from __future__ import annotations

import pytest

from tarragon_hpc.bench import checkpoint
from tarragon_hpc.config import load_config, merged
from tarragon_hpc.errors import ConfigError, UserError


def test_contestants_differ_in_one_thing():
    made = checkpoint.systems("m", 8, 4, {"checkpoint": {"replicas": 2, "stores": 2}})
    keys = {name: load_config(config).checkpoint for name, config in made.items()}
    assert [(name, c.stores, c.pause_every, c.checksums) for name, c in keys.items()] == [
        ("none", 0, None, True),
        ("ours", 2, None, True),
        ("pause", 2, 4, True),
        ("unsummed", 2, None, False),
    ]


def test_configurations_are_merged_key_by_key():
    config = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    assert merged(config, {"a": {"y": {"w": 4}}, "c": {"d": 5}}) == {
        "a": {"x": 1, "y": {"z": 2, "w": 4}}, "b": 3, "c": {"d": 5},
    }  # fmt: skip
    assert config["a"]["y"] == {"z": 2}


def test_what_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match="the folder does not exist"):
        checkpoint.run("m", png=str(tmp_path / "no" / "x.png"))
    with pytest.raises(ConfigError, match="experts.workers"):
        checkpoint.run("m", overrides={"experts": {"workers": 0}})
