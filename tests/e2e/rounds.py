"""Attention workers that are killed at seeded moments; every stream is what it would have been."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, Any

from tests.e2e.crowd import Crowd, begun, decoding

if TYPE_CHECKING:
    from tarragon_hpc.bench.service import Service

# Rows of the last steps that were on their way when their AW was killed.
LAG = 4
LONG = 1200


def check_restored(resumed: list[dict[str, Any]]) -> None:
    """Sequences that were decoding went on from the store, nearly all of each."""
    assert resumed
    assert {line["reason"] for line in resumed} == {""}
    assert all(line["restored"] > 0 for line in resumed)
    assert all(1 <= line["computed"] <= 1 + LAG for line in resumed)


def killed_attention_workers(service: Service, vocab: int, seed: str, *, chunks: bool) -> None:
    """Five deaths of AWs of a service with a store, two shadowed EWs and no prefix cache.

    chunks: whether a prompt is computed in several steps
    """
    rng = random.Random(seed)
    people = Crowd(service, vocab)
    drawing = Crowd(service, vocab, seed=1, temperature=0.8)
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

    # One in the middle of long prompts; some of its requests have not even begun.
    long = Crowd(service, vocab, seed=2, lengths=[LONG] * 2 * len(names), new_tokens=16)
    prefill = people.mark()
    long.check((begun(len(names)), long.kill(rng.choice(names))))
    if chunks:
        resumed = people.since(prefill, "request resumed")
        parts = [line for line in resumed if line["restored"] + line["computed"] == LONG]
        assert any(0 < line["restored"] < LONG for line in parts)
    people.whole()

    # One at any moment.
    people.check((rng.uniform(0.0, 0.5), people.kill(rng.choice(names))))
    status = people.whole()
    assert status["requests"]["ended"].get("failed", 0) == 0
    lost = people.since(decoded, "worker lost")
    assert len([line for line in lost if line["worker"] in names]) == 5
    people.check()
