"""Garbage on any port never hurts, and a stop leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tarragon_hpc.bench.service import serving
from tarragon_hpc.cluster.rendezvous import read_head

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def config_for(model: Path) -> dict:
    return {
        "model": {"path": str(model), "served_name": "tiny"},
        "attention": {"workers": 1, "kv_cache": "128MiB"},
        "experts": {"workers": 1},
        "gateway": {"port": 0},
    }


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def shared_memory() -> set[str]:
    return {p.name for p in Path("/dev/shm").iterdir()}


def complete(endpoint: str) -> int:
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{endpoint}/completions", json=body, timeout=60)
    return answer.json()["usage"]["completion_tokens"]


def test_garbage_on_every_port(tiny_models, tmp_path):
    rng = random.Random(1)
    with serving(config_for(tiny_models("mixtral")), tmp_path) as service:
        family = [psutil.Process(service.process.pid), *descendants(service.process.pid)]
        listening = {
            (c.laddr.ip, c.laddr.port)
            for p in family
            for c in p.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN
        }
        head = read_head(service.run_dir)
        assert any(port == head.control_port for _, port in listening), (head, listening)
        for ip, port in listening:
            for size in (0, 1, 40, 5000):
                try:
                    with socket.create_connection((ip, port), timeout=2) as connection:
                        connection.sendall(rng.randbytes(size))
                except OSError:
                    continue
        assert service.process.poll() is None
        assert complete(service.endpoint) == 4
        assert {w["state"] for w in service.status()["workers"]} == {"serving"}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "stop", signal.SIGKILL])
def test_a_stop_leaves_nothing_behind(how, tiny_models, tmp_path):
    before = shared_memory()
    with serving(config_for(tiny_models("mixtral")), tmp_path) as service:
        assert complete(service.endpoint) == 4
        family = descendants(service.process.pid)
        assert len(family) >= 2
        runtime = Path(read_head(service.run_dir).runtime_dir)
        assert runtime.stat().st_mode & 0o777 == 0o700
        if how == "stop":
            command = [sys.executable, "-m", "tarragon_hpc.cli", "stop", str(service.run_dir)]
            subprocess.run(command, check=True, timeout=60)
        else:
            os.kill(service.process.pid, how)
        status = service.process.wait(60)
    assert status == (0 if how != signal.SIGKILL else -signal.SIGKILL)
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert shared_memory() == before
    if how != signal.SIGKILL:
        assert not runtime.exists()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            httpx.get(service.endpoint + "/models", timeout=1)
        except httpx.HTTPError:
            break
    else:
        pytest.fail("the gateway still answers")
