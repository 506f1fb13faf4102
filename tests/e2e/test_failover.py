"""Expert workers die, stop and crawl under real vLLM, and no stream has a token less or another.

A seeded subset of what `tarragon bench failover` does in full.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from datetime import datetime

import pytest

from tests.e2e.crowd import NEW_TOKENS, STREAMS, Crowd, start

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SHADOWED = {"workers": 2, "shadows": 1}
SETTINGS = {
    "mixtral": {"workers": 8, "shadows": 1},  # one expert each
    "qwen3-moe": SHADOWED,
    "deepseek-v3": {**SHADOWED, "placement": {"ew0": list(range(16))}},  # ew1: shadows only
}


@pytest.mark.parametrize("family", SETTINGS)
def test_killed_expert_workers_change_no_token(family, tiny_models, tmp_path):
    service, vocab = start(tiny_models, tmp_path, family, experts=SETTINGS[family])
    rng = random.Random(family)
    with service as running:
        people = Crowd(running, vocab)
        names = people.names("ew")
        for number in range(4):
            first, second = rng.sample(names, 2)
            events = [(rng.uniform(0, 0.5), people.kill(first))]
            if number % 2:  # another one during the failover, or while the replacement joins
                events.append((events[0][0] + rng.uniform(0, 1.0), people.kill(second)))
            people.check(*events)
            status = people.whole()
            assert status["requests"]["ended"].get("failed", 0) == 0
        lost = [e for e in people.timeline() if e["event"] == "worker lost"]
        assert len(lost) == 6
        people.check()


def test_stopped_and_slow_expert_workers_change_no_token(tiny_models, tmp_path):
    service, vocab = start(tiny_models, tmp_path, "mixtral", experts=SHADOWED)
    with service as running:
        people = Crowd(running, vocab)
        # Stopped for a while: masked, and trusted again without a restart.
        with people.victim("ew0") as victim:
            people.check((0.1, lambda: victim.signal("stop")), (0.6, lambda: victim.signal("cont")))
        people.check()
        assert people.worker("ew0")["incarnation"] == 1
        events = {e["event"] for e in people.timeline()}
        assert {"worker suspected", "failure masked", "worker trusted again"} <= events
        # Slow: has a tenth of the time.
        with people.victim("ew1") as victim:
            slow = threading.Thread(target=victim.slow, args=(10.0, 1.0, threading.Event()))
            people.check((0.1, slow.start))
            slow.join()
        people.check()
        # Stopped for good: replaced.
        with people.victim("ew1") as victim:
            people.check((0.1, lambda: victim.signal("stop")))
            people.until(
                lambda s: all(
                    w["incarnation"] == 2 and w["state"] == "serving"
                    for w in s["workers"]
                    if w["id"] == "ew1"
                )
            )
        people.check()


def test_the_head_is_not_needed_and_scaling_is_not_noticed(tiny_models, tmp_path):
    service, vocab = start(tiny_models, tmp_path, "mixtral", experts=SHADOWED)
    with service as running:
        people = Crowd(running, vocab)
        kill = people.kill("ew1")
        killed = []

        def both() -> None:
            running.process.send_signal(signal.SIGSTOP)
            killed.append(time.time())
            kill()
            threading.Timer(1.0, running.process.send_signal, [signal.SIGCONT]).start()

        people.check((0.1, both))
        masked = [e for e in people.timeline() if e["event"] == "failure masked"]
        assert masked
        # The AWs had it masked while the head stood still; they clocked it themselves.
        took = max(e["detected_ago_s"] - e["answered_ago_s"] for e in masked)
        seen = [
            datetime.fromisoformat("T".join(line.split()[:2])).timestamp()
            for log in running.run_dir.glob("logs/aw*.log")
            for line in log.read_text().splitlines()
            if "ew1: process gone" in line
        ]
        assert seen
        assert max(seen) + took - killed[0] < 0.8
        people.whole()
        # More and fewer EWs, under load.
        for count in (3, 2):
            people.check((0.1, lambda n=count: people.scale("ew", n)))
            people.until(lambda s, n=count: sum(w["role"] == "ew" for w in s["workers"]) == n)
            status = people.whole()
            held = {w["id"]: w["experts"] for w in status["workers"] if w["role"] == "ew"}
            assert sorted(e for experts in held.values() for e in experts) == list(range(8))
            people.check()


@pytest.mark.parametrize("mode", ["load", "wait", "mask"])
def test_experts_that_nobody_serves(mode, tiny_models, tmp_path):
    """Both holders of some experts die at once; the third EW has never had these experts."""
    experts = {"workers": 3, "shadows": 1, "on_missing": mode}
    service, vocab = start(tiny_models, tmp_path, "mixtral", experts=experts)
    with service as running:
        people = Crowd(running, vocab)
        kills = people.kill("ew0"), people.kill("ew1")
        together = [(0.1, kills[0]), (0.1, kills[1])]
        if mode == "mask":
            streams = asyncio.run(people.ask(*together))
            assert [s.error for s in streams] == [None] * STREAMS
            assert all(len(s.tokens) == NEW_TOKENS for s in streams)
        else:
            people.check(*together)
        people.whole()
        if mode == "mask":
            assert people.status()["requests"]["masked"] > 0
        people.check()
