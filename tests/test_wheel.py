"""What an installation contains."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(target, **environment):
    env = {k: v for k, v in os.environ.items() if k != "TARRAGON_PURE"} | environment
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-w", str(target), str(ROOT)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel, zipfile.ZipFile(wheel).namelist()


def test_pure_wheel_holds_the_package_only(tmp_path):
    wheel, names = build(tmp_path, TARRAGON_PURE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    top = {n.split("/")[0] for n in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"tarragon_hpc"}
    assert {"tarragon_hpc/cli/app.py", "tarragon_hpc/py.typed"} <= set(names)
    assert not [n for n in names if n.endswith((".so", ".cpp"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.timeout(600)
def test_wheel_has_the_native_module(tmp_path):
    """Compiles kernels/ the first time; later runs reuse build/."""
    wheel, names = build(tmp_path)
    assert "none-any" not in wheel.name
    assert [n for n in names if n.startswith("tarragon_hpc/_native") and n.endswith(".so")]
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"tarragon_hpc"}
