"""Expert workers die, stop and crawl under real vLLM, and no stream has a token less or another.

A seeded subset of what `tarragon bench failover` does in full.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tarragon_hpc.bench.injection import is_whole
from tarragon_hpc.bench.load import Load, Prompt
from tarragon_hpc.bench.service import Service, serving
from tarragon_hpc.cluster.faults import Victim, find_target

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

STREAMS = 12
NEW_TOKENS = 96
SHADOWED = {"workers": 2, "shadows": 1}
SETTINGS = {
    "mixtral": {"workers": 8, "shadows": 1},  # one expert each
    "qwen3-moe": SHADOWED,
    "deepseek-v3": {**SHADOWED, "placement": {"ew0": list(range(16))}},  # ew1: shadows only
}


class Crowd:
    """A service, prompts, and what it answered to them before anything failed."""

    def __init__(self, service: Service, vocab: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        lengths = [1, 200, *(rng.randint(2, 120) for _ in range(STREAMS - 2))]
        self.service = service
        self.prompts = [
            Prompt([rng.randrange(3, vocab) for _ in range(n)], NEW_TOKENS) for n in lengths
        ]
        self.expected = [s.tokens for s in asyncio.run(self._ask())]
        assert all(len(tokens) == NEW_TOKENS for tokens in self.expected)

    async def _ask(self, *events: tuple[float, Any]) -> list[Any]:
        """All prompts at once; each event (seconds from now, callable) on the way."""
        load = Load(self.service.endpoint, self.prompts, STREAMS)
        loop = asyncio.get_running_loop()
        for after, happen in events:
            loop.call_later(after, happen)
        await load.once(range(STREAMS))
        await asyncio.sleep(max((after for after, _ in events), default=0) + 0.05)
        return sorted(load.all, key=lambda s: s.prompt)

    def check(self, *events: tuple[float, Any]) -> list[Any]:
        """Ask again while things happen: every stream must be what it was."""
        streams = asyncio.run(self._ask(*events))
        assert [s.error for s in streams] == [None] * STREAMS
        assert [s.tokens for s in streams] == self.expected
        return streams

    def workers(self) -> list[dict[str, Any]]:
        return self.service.status()["workers"]

    def victim(self, name: str) -> Victim:
        return Victim(find_target(self.service.status(), name, os.uname().nodename))

    def kill(self, name: str):
        victim = self.victim(name)
        return lambda: victim.signal("kill")

    def scale(self, count: int) -> None:
        command = [sys.executable, "-m", "tarragon_hpc.cli", "scale"]
        command += [str(self.service.run_dir), f"ew={count}"]
        threading.Thread(target=subprocess.run, args=(command,)).start()

    def until(self, condition, seconds: float = 30.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            status = self.service.status()
            if condition(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.05)

    def whole(self) -> dict[str, Any]:
        """Wait until every worker serves and every expert has all its replicas."""
        return self.until(is_whole)

    def timeline(self) -> list[dict[str, Any]]:
        text = (self.service.run_dir / "timeline.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def crowd(tiny_models, tmp_path: Path, family: str, experts: dict[str, Any], **sections: Any):
    """A context manager: a service of this family, and a crowd at its door."""
    model = tiny_models(family)
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    config = {
        "model": {"path": str(model), "dtype": "float32"},
        "attention": {"workers": 2, "kv_cache": "128MiB", "max_num_batched_tokens": 256},
        "experts": experts,
        "gateway": {"port": 0},
        "cluster": {"max_restarts": 1000},
        "detection": {"stopped_grace_s": 1.5, "heartbeat_misses": 5},
        **sections,
    }
    return serving(config, tmp_path), vocab


@pytest.mark.parametrize("family", SETTINGS)
def test_killed_expert_workers_change_no_token(family, tiny_models, tmp_path):
    service, vocab = crowd(tiny_models, tmp_path, family, SETTINGS[family])
    rng = random.Random(family)
    with service as running:
        people = Crowd(running, vocab)
        names = [w["id"] for w in people.workers() if w["role"] == "ew"]
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
    service, vocab = crowd(tiny_models, tmp_path, "mixtral", SHADOWED)
    with service as running:
        people = Crowd(running, vocab)
        # Stopped for a while: masked, and trusted again without a restart.
        with people.victim("ew0") as victim:
            people.check((0.1, lambda: victim.signal("stop")), (0.6, lambda: victim.signal("cont")))
        people.check()
        ew0 = next(w for w in people.workers() if w["id"] == "ew0")
        assert ew0["incarnation"] == 1
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
    service, vocab = crowd(tiny_models, tmp_path, "mixtral", SHADOWED)
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
            people.check((0.1, lambda n=count: people.scale(n)))
            people.until(lambda s, n=count: sum(w["role"] == "ew" for w in s["workers"]) == n)
            status = people.whole()
            held = {w["id"]: w["experts"] for w in status["workers"] if w["role"] == "ew"}
            assert sorted(e for experts in held.values() for e in experts) == list(range(8))
            people.check()


@pytest.mark.parametrize("mode", ["load", "wait", "mask"])
def test_experts_that_nobody_serves(mode, tiny_models, tmp_path):
    """Both holders of some experts die at once; the third EW has never had these experts."""
    experts = {"workers": 3, "shadows": 1, "on_missing": mode}
    service, vocab = crowd(tiny_models, tmp_path, "mixtral", experts)
    with service as running:
        people = Crowd(running, vocab)
        kills = people.kill("ew0"), people.kill("ew1")
        together = [(0.1, kills[0]), (0.1, kills[1])]
        if mode == "mask":
            streams = asyncio.run(people._ask(*together))
            assert [s.error for s in streams] == [None] * STREAMS
            assert all(len(s.tokens) == NEW_TOKENS for s in streams)
        else:
            people.check(*together)
        people.whole()
        if mode == "mask":
            assert people.service.status()["requests"]["masked"] > 0
        people.check()
