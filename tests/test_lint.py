"""Style, types and import direction, as tests: there is one command to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m"]
IMPORTS = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([*PYTHON, "ruff", "check", "--no-fix", "."], id="ruff"),
        pytest.param([*PYTHON, "ruff", "format", "--check", "."], id="format"),
        pytest.param([*PYTHON, "mypy"], id="mypy"),
        pytest.param(IMPORTS, id="import-linter"),
    ],
)
def test_clean(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
