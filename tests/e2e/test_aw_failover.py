"""Attention workers die and stop under real vLLM, and no stream has a token less or another.

A seeded subset of what `tarragon bench failover` does in full.
"""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from tests.e2e.crowd import Crowd, begun, decoding, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

FAMILIES = ["mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss"]
SHADOWED = {"workers": 2, "shadows": 1}
# The answers of a crowd are asked for again and again: with a prefix cache there would be little
# to restore.
UNCACHED = {"prefix_caching": False}
STORED = {"stores": 1, "restore": "always", "memory": "64MiB"}
# Rows of the last steps that were on their way when their AW was killed.
LAG = 4


def check_restored(resumed: list[dict[str, Any]]) -> None:
    """Sequences that were decoding went on from the store, nearly all of each."""
    assert resumed
    assert {line["reason"] for line in resumed} == {""}
    assert all(line["restored"] > 0 for line in resumed)
    assert all(1 <= line["computed"] <= 1 + LAG for line in resumed)


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_attention_workers_change_no_token(family, tiny_models, tmp_path):
    attention = {"workers": 3 if family == "mixtral" else 2, **UNCACHED}
    service, vocab = start(
        tiny_models, tmp_path, family, attention=attention, experts=SHADOWED, checkpoint=STORED
    )
    rng = random.Random(family)
    with service as running:
        people = Crowd(running, vocab)
        drawing = Crowd(running, vocab, seed=1, temperature=0.8)
        names = people.names("aw")

        # One while it decodes, and another one while that one's requests are restored.
        decoded = people.mark()
        first, second = rng.sample(names, 2)
        soon = people.kill_all(first, second, pauses=[rng.uniform(0.0, 0.1)])
        people.check((decoding(rng.randint(2, 40)), soon))
        by = {line["worker"] for line in people.since(decoded, "request resumed")}
        assert len(names) == 2 or by <= set(names) - {first}
        people.whole()

        # One while it decodes, together with an EW.
        both = people.kill_all(rng.choice(names), rng.choice(["ew0", "ew1"]), pauses=[0.0])
        drawing.check((decoding(rng.randint(2, 40)), both))
        resumed = people.since(decoded, "request resumed")
        check_restored(resumed)
        # Only the last token of each, if what it was computed from was in the store.
        assert statistics.median(line["computed"] for line in resumed) == 1
        people.whole()

        # One in the middle of long prompts: the others of its requests have not even begun.
        long = Crowd(running, vocab, seed=2, lengths=[1200] * 2 * len(names), new_tokens=16)
        prefill = people.mark()
        long.check((begun(len(names)), long.kill(rng.choice(names))))
        resumed = people.since(prefill, "request resumed")
        # On CPUs vLLM computes a prompt at once if the model has MLA.
        if family != "deepseek-v3":
            parts = [line for line in resumed if line["restored"] + line["computed"] == 1200]
            assert any(0 < line["restored"] < 1200 for line in parts)
        people.whole()

        # One at some moment.
        people.check((rng.uniform(0.0, 0.5), people.kill(rng.choice(names))))
        status = people.whole()
        assert status["requests"]["ended"].get("failed", 0) == 0
        assert len([e for e in people.since(0, "worker lost") if e["worker"] in names]) == 5
        people.check()


def test_without_stores_everything_is_computed_anew(tiny_models, tmp_path):
    service, vocab = start(tiny_models, tmp_path, "qwen3-moe", attention=UNCACHED, experts=SHADOWED)
    with service as running:
        people = Crowd(running, vocab)
        drawing = Crowd(running, vocab, seed=1, temperature=0.8)
        mark = people.mark()
        drawing.check((decoding(40), drawing.kill("aw0")))
        people.whole()
        people.check((decoding(30), people.kill_all("aw1", "aw0", pauses=[0.05])))
        resumed = people.since(mark, "request resumed")
        assert len(resumed) >= 12
        assert all(line["restored"] == line["cached"] == 0 for line in resumed)
        assert all(line["computed"] > 30 for line in resumed)
        assert all(line["reason"] for line in resumed)
        status = people.whole()
        assert status["requests"]["ended"].get("failed", 0) == 0
