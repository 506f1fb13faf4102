"""The head starts fast and small: neither torch nor vllm is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "vllm", "transformers", "tarragon_hpc.attention", "tarragon_hpc.expert")


@pytest.mark.parametrize(
    "module",
    [
        "tarragon_hpc.cluster.head",
        "tarragon_hpc.cluster.client",
        "tarragon_hpc.cluster.entry",
        "tarragon_hpc.wire.link",
    ],
)
def test_a_fresh_interpreter_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
