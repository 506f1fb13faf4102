"""The recipes in launch/: short, and about as much as a user copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "launch").glob("*.py"))


def test_there_are_some():
    assert {p.stem for p in RECIPES} == {"generate", "serve"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    done = subprocess.run(
        [sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--site" in done.stdout
