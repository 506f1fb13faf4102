"""The head must not pay for an engine."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import tarragon_hpc.gateway.app, tarragon_hpc.gateway.server, tarragon_hpc.gateway.sessions
heavy = {"torch", "vllm", "transformers", "numpy", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_gateway_imports_no_engine():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
