"""Every file under configs/ is a configuration, and the reference shows the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tarragon_hpc.config import Config, load_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(p for p in CONFIGS.rglob("*") if p.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_parses(path):
    assert path.suffix == ".yaml"
    load_config(path)


def test_there_are_files():
    assert FILES


def test_reference_has_every_key_with_its_default():
    written = yaml.safe_load((CONFIGS / "reference.yaml").read_text(encoding="utf-8"))
    defaults = Config.model_validate({"model": {"path": written["model"]["path"]}})
    assert Config.model_validate(written) == defaults
    for section, keys in defaults.model_dump().items():
        assert set(written[section]) == set(keys), section
