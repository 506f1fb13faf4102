"""Attention workers die under real vLLM, and no stream has a token less or another.

A seeded subset of what `tarragon bench failover` does in full. `test_aw_service.py` does the same
with a Mixtral.
"""

from __future__ import annotations

import pytest

from tests.e2e.crowd import start
from tests.e2e.rounds import killed_attention_workers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.mark.parametrize("family", ["qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_killed_attention_workers_change_no_token(family, tiny_models, tmp_path):
    service, vocab = start(
        tiny_models,
        tmp_path,
        family,
        # The answers of a crowd are asked for again and again: with a prefix cache there would be
        # little to restore.
        attention={"workers": 2, "prefix_caching": False},
        experts={"workers": 2, "shadows": 1},
        checkpoint={"stores": 1, "restore": "always", "memory": "64MiB"},
    )
    with service as running:
        # On CPUs vLLM computes a prompt at once if the model has MLA.
        killed_attention_workers(running, vocab, family, chunks=family != "deepseek-v3")
