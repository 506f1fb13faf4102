"""A real EW from its fork server: killed, replaced, and bit by bit what a plain one is."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tarragon_hpc.cluster.forking import ForkServers
from tarragon_hpc.cluster.local import LocalLauncher, log_path
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import SECRET, create_run, write_head
from tarragon_hpc.cluster.spec import plan_workers
from tarragon_hpc.config import load_config
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.models.describe import describe
from tarragon_hpc.wire.auth import write_secret
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.to_head import Ready, Register
from tarragon_hpc.wire.to_worker import Welcome
from tests.unit.expert import conftest as expert

pytestmark = pytest.mark.native


class Launcher:
    """A `LocalLauncher` with fork servers, in a thread with an event loop of its own."""

    def __init__(self, run_dir, specs):
        self.ended: queue.SimpleQueue = queue.SimpleQueue()
        self.loop = asyncio.new_event_loop()
        self.launcher = LocalLauncher(
            specs, run_dir, lambda who: None, lambda *end: self.ended.put(end), ForkServers(run_dir)
        )
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def start(self, who):
        async def start():
            return self.launcher.start(who)

        return asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)

    def close(self):
        asyncio.run_coroutine_threadsafe(self.launcher.close(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def cluster():
    with tempfile.TemporaryDirectory(prefix="tarragon-") as directory:
        made = expert.Cluster(directory)
        yield made
        made.close()


def test_a_killed_ew_is_back_at_once_and_computes_the_same(tiny_models, cluster, tmp_path):
    model = tiny_models("mixtral")
    spec = describe(model)
    everything = list(range(spec.experts))
    config = load_config({"model": {"path": str(model)}, "experts": {"workers": 1}})
    run_dir = create_run(config, tmp_path / "run")
    (run_dir / SECRET).unlink()
    write_secret(run_dir / SECRET, expert.SECRET)
    port = cluster.head.port
    write_head(run_dir, HeadRecord("r", os.getpid(), "h", "127.0.0.1", port, "", cluster.directory))
    specs = {s.worker: s for s in plan_workers(config, sorted(os.sched_getaffinity(0)), [])}
    launcher = Launcher(run_dir, specs)
    try:
        cluster.serve(model, {"ew9": everything}, experts={"workers": 1})  # a plain one
        calls = [(layer, *expert.routing(spec, 9, layer)) for layer in spec.moe_layers[:2]]
        outputs, took = [], []
        plain = cluster.refe("aw9", model, {"ew9": everything})
        assert launcher.start(Incarnation("ew0", 1)) is None
        for number in (1, 2, 3):
            register = cluster.head.take("ew0", Register)
            assert register.incarnation == number
            cluster.head.send("ew0", Welcome(1, everything))
            cluster.head.take("ew0", Ready)
            took.append(time.monotonic())
            assert Path(f"/proc/{register.pid}/comm").read_text() == f"ew0.{number}\n"
            cluster.peers["ew0"] = Peer("ew0", number, register.address)
            outputs.append(answers(cluster.refe(f"aw{number}", model, {"ew0": everything}), calls))
            log = log_path(run_dir, Incarnation("ew0", number)).read_text()
            assert "serving experts" in log
            assert "Traceback" not in log
            os.kill(register.pid, signal.SIGKILL)
            assert launcher.ended.get(timeout=10) == (Incarnation("ew0", number), -signal.SIGKILL)
            took.append(time.monotonic())
            launcher.start(Incarnation("ew0", number + 1))
        expected = answers(plain, calls)
        assert outputs == [expected] * 3
        assert max(took[2] - took[1], took[4] - took[3]) < 3  # 30 ms if nothing else runs
    finally:
        launcher.close()


def answers(refe, calls):
    found = []
    for layer, hidden, ids, weights in calls:
        out = np.empty_like(hidden)
        refe.expert_io(layer, hidden, ids, weights, out)
        found.append(out.tobytes())
    return found
