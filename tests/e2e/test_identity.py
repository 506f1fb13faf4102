"""The oracle: our tokens are those of plain vLLM and of transformers, wherever experts live."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tarragon_hpc.bench.service import Service, serving
from tests.e2e.conftest import NEW_TOKENS

FAMILIES = ["mixtral", "qwen3-moe", "deepseek-v2", "deepseek-v3", "gpt-oss"]
# (AWs, EWs, how many of the first experts ew0 takes; None: balanced)
TOPOLOGIES = [(1, 1, None), (2, 2, 5), (3, 2, 1), (1, 3, None)]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def config_for(model: str, experts: int, aws: int, ews: int, first: int | None) -> dict[str, Any]:
    """A service with chunked prefill on (128 tokens a step) and, if asked, uneven placement."""
    placement = None
    if first is not None:
        assert ews == 2
        placement = {"ew0": list(range(first)), "ew1": list(range(first, experts))}
    return {
        "model": {"path": model, "dtype": "float32"},
        "attention": {"workers": aws, "max_num_batched_tokens": 128, "kv_cache": "128MiB"},
        "experts": {"workers": ews, "placement": placement},
        "gateway": {"port": 0},
    }


async def complete_all(service: Service, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts at once, greedy; the token ids of each."""
    limits = httpx.Limits(max_connections=len(prompts))
    async with httpx.AsyncClient(limits=limits, timeout=240) as client:
        model = (await client.get(f"{service.endpoint}/models")).json()["data"][0]["id"]

        async def one(ids: list[int]) -> list[int]:
            body = {
                "model": model,
                "prompt": ids,
                "max_tokens": NEW_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            answer = await client.post(f"{service.endpoint}/completions", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["token_ids"]

        return await asyncio.gather(*(one(ids) for ids in prompts))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_references_agree(family, reference):
    expected = reference(family)
    assert expected.vllm == expected.transformers
    # A degenerate model (one token for ever) would prove nothing.
    assert all(len(set(ids)) > 8 for ids in expected.vllm)


@pytest.mark.parametrize(("aws", "ews", "first"), TOPOLOGIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_identical(family, aws, ews, first, reference, tmp_path):
    from tarragon_hpc.models.describe import describe

    expected = reference(family)
    experts = describe(str(expected.model)).experts
    config = config_for(str(expected.model), experts, aws, ews, first)
    with serving(config, tmp_path) as service:
        got = asyncio.run(complete_all(service, expected.prompts))
        workers = {w["id"]: w for w in service.status()["workers"]}
    assert got == expected.vllm
    # Not an accident of one worker doing everything.
    assert len([w for w in workers.values() if w["role"] == "aw"]) == aws
    held = [set(w["experts"]) for w in workers.values() if w["role"] == "ew"]
    assert len(held) == ews
    assert set().union(*held) == set(range(experts))
    assert sum(map(len, held)) == experts
