"""Attention workers die and stop under real vLLM, and no stream has a token less or another.

A seeded subset of what `tarragon bench failover` does in full.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tarragon_hpc.bench.injection import is_whole
from tests.e2e.crowd import Crowd, decoding, first_token, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

FAMILIES = ["mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss"]
SHADOWED = {"workers": 2, "shadows": 1}
# The answers of a crowd are asked for again and again: with a prefix cache there would be little
# to restore.
UNCACHED = {"prefix_caching": False}
STORED = {"stores": 1, "restore": "always", "memory": "64MiB"}
# Rows of the last steps that were on their way when their AW was killed.
LAG = 4


def check_restored(resumed: list[dict[str, Any]], *, most: bool = True) -> None:
    """Sequences that were decoding went on from the store, not from the beginning."""
    assert resumed
    assert {line["reason"] for line in resumed} == {""}
    assert all(line["restored"] > 0 for line in resumed)
    computed = sorted(line["computed"] for line in resumed)
    assert computed[0] >= 1
    assert computed[-1] <= 1 + LAG
    if most:
        assert computed[len(computed) // 2] == 1


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

        # One and an EW at the same time.
        mark = people.mark()
        both = people.kill_all(rng.choice(names), rng.choice(["ew0", "ew1"]), pauses=[0.0])
        drawing.check((decoding(rng.randint(2, 40)), both))
        check_restored(people.since(mark, "request resumed"))
        people.whole()

        # Another one while it restores what the first one ran.
        mark = people.mark()
        first, second = rng.sample(names, 2)
        soon = people.kill_all(first, second, pauses=[rng.uniform(0.0, 0.1)])
        people.check((decoding(rng.randint(2, 40)), soon))
        resumed = people.since(mark, "request resumed")
        check_restored(resumed)
        if attention["workers"] == 3:
            assert {line["worker"] for line in resumed} <= set(names) - {first}
        status = people.whole()

        # In the prefill of long prompts.
        long = Crowd(running, vocab, seed=2, lengths=[900] * 6, new_tokens=16)
        mark = people.mark()
        long.check((first_token, long.kill(rng.choice(names))))
        resumed = people.since(mark, "request resumed")
        assert any(line["restored"] >= 256 for line in resumed)
        assert all(line["cached"] == 0 for line in resumed)
        status = people.whole()
        assert status["requests"]["ended"].get("failed", 0) == 0
        assert len(people.since(0, "worker lost")) == 5
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


@pytest.fixture(scope="module")
def people(tiny_models, tmp_path_factory):
    """Three AWs, given time when they are stopped; everybody talks for a while."""
    service, vocab = start(
        tiny_models,
        tmp_path_factory.mktemp("stopped"),
        "mixtral",
        attention={"workers": 3},
        experts=SHADOWED,
        checkpoint=STORED,
        detection={"stopped_grace_s": 30},
    )
    with service as running:
        yield Crowd(running, vocab, lengths=[60] * 9, new_tokens=300)


def test_a_stopped_attention_worker_is_left_alone(people):
    mark = people.mark()
    with people.victim("aw1") as victim, people.busy():
        people.until(lambda s: s["requests"]["running_on"]["aw1"] >= 2)
        try:
            victim.signal("stop")
            people.until(lambda _: people.since(mark, "requests moved"))
            people.until(lambda _: people.since(mark, "request resumed"))
        finally:
            victim.signal("cont")
        # It takes new ones again; what it says of the old ones is not listened to.
        people.until(is_whole)
        people.until(lambda s: s["requests"]["running_on"]["aw1"] >= 1)
    assert people.worker("aw1")["incarnation"] == victim.target.incarnation
    moved = people.since(mark, "requests moved")
    assert {line["worker"] for line in moved} == {"aw1"}
    assert all("silent" in line["reason"] for line in moved)
    resumed = people.since(mark, "request resumed")
    assert len(resumed) >= 2
    assert "aw1" not in {line["worker"] for line in resumed}
    assert people.status()["requests"]["ended"].get("failed", 0) == 0


def test_fewer_and_more_attention_workers(people):
    mark = people.mark()
    people.whole()
    with people.busy():
        people.until(lambda s: s["requests"]["running"] == 9)
        people.scale("aw", 1)
        people.until(lambda s: [w["id"] for w in s["workers"] if w["role"] == "aw"] == ["aw0"])
        moved = people.since(mark, "requests moved")
        assert {line["worker"] for line in moved} == {"aw1", "aw2"}
        assert not people.since(mark, "worker lost")
        people.until(lambda s: s["requests"]["running_on"] == {"aw0": 9})
        people.scale("aw", 3)
        people.until(lambda s: is_whole(s) and len(s["requests"]["running_on"]) == 3, 60)
        people.until(lambda s: min(s["requests"]["running_on"].values()) >= 1)
    check_restored(people.since(mark, "request resumed"))
    assert people.status()["requests"]["ended"].get("failed", 0) == 0
