"""Whole services with real vLLM, driven from outside."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NEW_TOKENS = 64


@dataclass(frozen=True)
class Reference:
    """Prompts of a family and what real engines answer to them (greedy, fp32, 64 new tokens)."""

    model: Path
    prompts: list[list[int]]
    vllm: list[list[int]]
    transformers: list[list[int]]


def make_prompts(vocab: int, seed: int = 0) -> list[list[int]]:
    """16 prompts of 1 to 200 tokens."""
    rng = random.Random(seed)
    lengths = [1, 2, 200, *(rng.randint(3, 199) for _ in range(13))]
    return [[rng.randrange(3, vocab) for _ in range(n)] for n in lengths]


@pytest.fixture(scope="session")
def reference(
    tiny_models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Reference]:
    """Factory: family → Reference; each engine runs once a session."""

    @cache
    def of(family: str) -> Reference:
        model = tiny_models(family)
        vocab = json.loads((model / "config.json").read_text())["vocab_size"]
        prompts = make_prompts(vocab)
        scratch = tmp_path_factory.mktemp(f"oracle-{family}")
        (scratch / "prompts.json").write_text(json.dumps(prompts))
        answers = {}
        for engine in ("vllm", "transformers"):
            out = scratch / f"{engine}.json"
            command = [sys.executable, str(Path(__file__).with_name("oracle.py")), engine]
            command += [str(model), str(scratch / "prompts.json"), str(out), str(NEW_TOKENS)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, done.stderr[-3000:]
            answers[engine] = json.loads(out.read_text())
        return Reference(model, prompts, answers["vllm"], answers["transformers"])

    return of
