"""Checkpoint stores die and stop under real vLLM: no request notices, and what is lost with them
is kept anew.
"""

from __future__ import annotations

import time

import pytest

from tarragon_hpc.bench.arrivals import gaps_of_live
from tests.e2e.crowd import Crowd, decoding, start
from tests.e2e.rounds import LAG

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SHADOWED = {"workers": 2, "shadows": 1}
QUEUE = 256 << 10
# A store that is stopped must not be noticed by the head here, but by the queues of the AWs.
PATIENT = {"heartbeat_misses": 200}
STORED = {
    "stores": 1, "restore": "always", "memory": "64MiB", "queue": QUEUE, "slot_bytes": 64 << 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def people(tiny_models, tmp_path_factory):
    """One store, and six clients who talk for a while."""
    service, vocab = start(
        tiny_models,
        tmp_path_factory.mktemp("stores"),
        "mixtral",
        attention={"prefix_caching": False},
        experts=SHADOWED,
        checkpoint=STORED,
        detection=PATIENT,
    )
    with service as running:
        yield Crowd(running, vocab, lengths=[80] * 6, new_tokens=500)


def test_a_killed_store_is_replaced_and_filled(people):
    with people.busy():
        people.until_protected()
        mark = people.mark()
        people.kill("cs0")()
        # Nobody has a store, then both AWs have the new one.
        people.until(lambda _: len(people.since(mark, "stores told")) >= 4)
        assert [e["worker"] for e in people.since(mark, "worker lost")] == ["cs0"]
        people.until_protected()
        # The new one is as good as the old one was.
        mark = people.mark()
        people.kill("aw1")()
        people.until(lambda _: len(people.since(mark, "request resumed")) >= 2)
        people.whole()
    resumed = people.since(mark, "request resumed")
    assert {line["reason"] for line in resumed} == {""}
    assert all(line["restored"] > 0 for line in resumed)
    assert people.status()["requests"]["ended"].get("failed", 0) == 0


def test_a_stopped_store_holds_nobody_up(people):
    people.whole()
    with people.victim("cs0") as victim, people.busy() as streams:
        people.until_protected()
        calm = time.monotonic()
        time.sleep(1.5)
        stopped = time.monotonic()
        queued, lag = [], []
        try:
            victim.signal("stop")
            while time.monotonic() < stopped + 5:
                status = people.status()
                stats = [w["stats"] for w in status["workers"] if w["role"] == "aw"]
                queued += [s["kv_queue_bytes"] for s in stats]
                lag.append(status["checkpoint"]["lag_tokens"])
                time.sleep(0.2)
        finally:
            victim.signal("cont")
        over = time.monotonic()
        people.until_protected()
    assert people.worker("cs0")["incarnation"] == victim.target.incarnation
    usual = max(gaps_of_live(streams, calm, stopped))
    assert max(gaps_of_live(streams, stopped, over)) < usual + 0.5
    assert max(queued) <= QUEUE
    assert max(lag) > 100
    # Caught up: as good as before.
    mark = people.mark()
    people.check((decoding(100), people.kill("aw0")))
    resumed = people.since(mark, "request resumed")
    assert resumed
    assert all(line["restored"] > 0 for line in resumed)


def test_a_store_and_an_attention_worker_die_together(people):
    people.whole()
    mark = people.mark()
    people.check((decoding(100), people.kill_all("cs0", "aw0", pauses=[0.0])))
    resumed = people.since(mark, "request resumed")
    assert resumed
    assert all(line["restored"] == 0 and line["computed"] >= 180 for line in resumed)
    assert all(line["reason"] for line in resumed)
    status = people.whole()
    assert status["requests"]["ended"].get("failed", 0) == 0


def test_the_second_store_has_everything_too(tiny_models, tmp_path):
    service, vocab = start(
        tiny_models,
        tmp_path,
        "qwen3-moe",
        experts=SHADOWED,
        checkpoint=STORED | {"stores": 2, "replicas": 2},
    )
    with service as running:
        people = Crowd(running, vocab)
        mark = people.mark()
        people.check((decoding(40), people.kill_all("cs0", "aw0", pauses=[0.0])))
        people.whole()
        people.check((decoding(40), people.kill_all("cs1", "aw1", pauses=[0.0])))
        resumed = people.since(mark, "request resumed")
        assert len(resumed) >= 8
        assert {line["reason"] for line in resumed} == {""}
        # Some were asked for before, and their beginning is in the prefix cache.
        assert all(line["restored"] + line["cached"] > 40 for line in resumed)
        assert all(line["computed"] <= 1 + LAG for line in resumed)
        assert any(line["restored"] for line in resumed)
        status = people.whole()
        assert status["requests"]["ended"].get("failed", 0) == 0
