"""Programs that people already have: the openai client and `vllm bench serve`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tarragon_hpc.bench.service import serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def service(tiny_models, tmp_path_factory):
    config = {
        "model": {"path": str(tiny_models("qwen3-moe")), "served_name": "tiny"},
        "attention": {"workers": 2, "kv_cache": "128MiB"},
        "experts": {"workers": 2},
        "gateway": {"port": 0},
    }
    with serving(config, tmp_path_factory.mktemp("clients")) as running:
        yield running


def test_openai_client(service):
    client = openai.OpenAI(base_url=service.endpoint, api_key="none", max_retries=0)
    request = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(**request)
    pieces = list(client.completions.create(**request, stream=True))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text
    assert whole.usage.completion_tokens <= 24
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    answer = client.chat.completions.create(**chat, temperature=0)
    deltas = list(client.chat.completions.create(**chat, temperature=0, stream=True))
    text = "".join(d.choices[0].delta.content or "" for d in deltas if d.choices)
    assert text == answer.choices[0].message.content
    assert deltas[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    many = client.completions.create(**{**request, "temperature": 1.0}, n=3, seed=7)
    again = client.completions.create(**{**request, "temperature": 1.0}, n=3, seed=7)
    assert [c.text for c in many.choices] == [c.text for c in again.choices]
    assert len({c.text for c in many.choices}) == 3
    with pytest.raises(openai.NotFoundError):
        client.completions.create(**{**request, "model": "other"})


def test_vllm_bench_serve(service, tiny_models, tmp_path):
    script = Path(__file__).with_name("vllm_bench_serve.py")
    base = service.endpoint.removesuffix("/v1")
    command = [sys.executable, str(script), "--backend", "vllm", "--base-url", base]
    command += ["--endpoint", "/v1/completions", "--model", "tiny", "--dataset-name", "random"]
    command += ["--tokenizer", str(tiny_models("qwen3-moe")), "--num-prompts", "100"]
    command += ["--random-input-len", "20", "--random-output-len", "16", "--ignore-eos"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["completed"] == 100
    assert result["failed"] == 0
    assert result["total_output_tokens"] == 1600
