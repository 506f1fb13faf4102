"""A worker is killed, stopped, or loses its head: it is seen, said, and nothing hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tarragon_hpc.cluster.client import query_status, stop_run
from tarragon_hpc.cluster.rendezvous import read_head
from tarragon_hpc.config import dump_config
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal

NO_RESTARTS = {"max_restarts": 0}
HEAD = """
import asyncio, sys
from pathlib import Path
import dataclasses
from tarragon_hpc.cluster import launching
from tarragon_hpc.cluster.head import run_service
from tarragon_hpc.config import load_config
real = launching.plan_workers
program = (sys.executable, sys.argv[3], "")
launching.plan_workers = lambda *a: [dataclasses.replace(s, program=program) for s in real(*a)]
async def main():
    ready = lambda info: print(info.endpoint, flush=True)
    config, run_dir = load_config(sys.argv[1]), Path(sys.argv[2])
    await run_service(config, run_dir=run_dir, on_ready=ready, stop=asyncio.Event())
asyncio.run(main())
"""


async def end_of(service, worker: str, since: float) -> dict[str, Any]:
    """The first timeline entry after a moment that says how a worker ended."""
    async with asyncio.timeout(10):
        while True:
            for entry in service.timeline():
                if entry.get("worker") == worker and entry["time"] >= since and "detected" in entry:
                    return entry
            await asyncio.sleep(0.001)


def test_deaths_are_seen_within_50_ms_by_timeline_journal_and_status(make_config, serving):
    async def scenario() -> None:
        config = make_config(attention={"workers": 3}, cluster=NO_RESTARTS)
        async with serving(config) as service:
            delays = []
            for name in ("aw2", "ew1", "aw0"):
                pid = (await service.worker(name))["pid"]
                killed = time.time()
                os.kill(pid, signal.SIGKILL)
                entry = await end_of(service, name, killed)
                delays.append(entry["time"] - killed)
                assert entry["event"] == "worker lost"
                assert entry["incarnation"] == 1
                assert entry["detected"] in ("process", "connection", "exit")
                assert entry["silent_s"] < 5
                worker = await service.worker(name)
                assert worker["state"] == "dead"
            assert statistics.median(delays) < 0.05, delays
            await service.until(
                lambda s: all(w["exit"] for w in s["workers"] if w["state"] == "dead")
            )
            status = await service.status()
            assert {w["id"]: w["state"] for w in status["workers"]} == {
                "aw0": "dead",
                "aw1": "serving",
                "aw2": "dead",
                "ew0": "serving",
                "ew1": "dead",
            }
            assert {w["exit"] for w in status["workers"] if w["state"] == "dead"} == {
                "killed by SIGKILL"
            }
            journal = read_journal(service.info.run_dir / "journal.jsonl")
            state = replay(entry.event for entry in journal)
            assert [w.worker for w in state.workers.values() if w.phase == "dead"] == [
                "aw0",
                "aw2",
                "ew1",
            ]
            lost = [e for e in service.timeline() if e["event"] == "worker lost"]
            assert [e["worker"] for e in lost] == ["aw2", "ew1", "aw0"]  # once each

    asyncio.run(scenario())


def test_the_requests_of_a_killed_aw_go_on_elsewhere(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(cluster=NO_RESTARTS)) as service:
            running = [asyncio.create_task(service.complete(300)) for _ in range(4)]
            await service.until(lambda s: s["requests"]["tokens"] > 8)
            killed = time.monotonic()
            os.kill((await service.worker("aw0"))["pid"], signal.SIGKILL)
            answers = await asyncio.gather(*running)
            assert [a.status_code for a in answers] == [200] * 4
            assert [a.json()["usage"]["completion_tokens"] for a in answers] == [300] * 4
            status = await service.status()
            assert status["state"] == "degraded"
            requests = status["requests"]
            assert (requests["moved"], requests["recomputed"], requests["waiting"]) == (2, 2, 0)
            assert requests["ended"] == {"finished": 4}
            timeline = service.timeline()
            (moved,) = [e for e in timeline if e["event"] == "requests moved"]
            assert (moved["worker"], moved["count"], moved["waiting"]) == ("aw0", 2, 0)
            resumed = [e for e in timeline if e["event"] == "request resumed"]
            assert [(e["worker"], e["left"], e["attempt"]) for e in resumed] == [
                ("aw1", "aw0.1", 2)
            ] * 2
            assert all(0 < e["gap_s"] < e["mono"] - killed + 1 for e in resumed)
            assert (await service.complete(2)).status_code == 200

    asyncio.run(scenario())


def test_requests_wait_for_the_replacement_of_the_only_aw(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config(attention={"workers": 1})) as service:
            running = [asyncio.create_task(service.complete(100)) for _ in range(3)]
            await service.until(lambda s: s["requests"]["tokens"] > 8)
            os.kill((await service.worker("aw0"))["pid"], signal.SIGKILL)
            await service.until(lambda s: s["requests"]["waiting"] == 3)
            answers = await asyncio.gather(*running)
            assert [a.json()["usage"]["completion_tokens"] for a in answers] == [100] * 3
            (moved,) = [e for e in service.timeline() if e["event"] == "requests moved"]
            assert (moved["count"], moved["waiting"]) == (3, 3)
            assert (await service.worker("aw0"))["incarnation"] == 2

    asyncio.run(scenario())


def test_requests_that_no_aw_is_left_for_end_with_a_clear_error(make_config, serving):
    async def scenario() -> None:
        config = make_config(
            attention={"workers": 1}, cluster=NO_RESTARTS, gateway={"failover_timeout_s": 0.5}
        )
        async with serving(config) as service:
            running = [asyncio.create_task(service.complete(1000)) for _ in range(2)]
            await service.until(lambda s: s["requests"]["tokens"] > 8)
            os.kill((await service.worker("aw0"))["pid"], signal.SIGKILL)
            for answer in await asyncio.gather(*running):
                assert answer.status_code == 503
                message = answer.json()["error"]["message"]
                assert "attention worker aw0 was lost" in message
                assert "waited 0.5 s for another attention worker: no attention worker" in message
                assert "is left (aw0 given up after 0 restarts" in message
                assert "tokens had been generated" in message
            refused = await service.complete(2)
            assert refused.status_code == 503
            message = refused.json()["error"]["message"]
            assert "no attention worker is left (aw0 given up after 0 restarts" in message

    asyncio.run(scenario())


def test_a_stream_survives_its_aw_and_its_connection(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            body = {"model": "tiny", "prompt": [5, 6], "max_tokens": 150, "return_token_ids": True}
            body |= {"stream": True, "resumable": True, "request_id": "mine"}
            lines = []
            async with service.http.stream("POST", "/completions", json=body) as response:
                async for line in response.aiter_lines():
                    lines.append(line)
                    if len(lines) == 6:
                        break
            os.kill((await service.worker("aw0"))["pid"], signal.SIGKILL)
            url = "/requests/cmpl-mine/stream"
            async with service.http.stream("GET", url, params={"after": 2}) as response:
                lines += [line async for line in response.aiter_lines()]
            events = "\n".join(lines).strip().split("\n\n")
            assert [e.split("\n")[0] for e in events] == [
                f"id: {i + 1}" for i in range(len(events))
            ]
            chunks = [json.loads(e.split("\n")[1][6:]) for e in events[:-1]]
            tokens = [t for chunk in chunks for t in chunk["choices"][0]["token_ids"]]
            assert len(tokens) == 150
            assert (await service.status())["requests"]["moved"] == 1

    asyncio.run(scenario())


def test_a_stopped_worker_is_unresponsive_until_it_is_heard_again(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            pid = (await service.worker("ew0"))["pid"]
            os.kill(pid, signal.SIGSTOP)
            await service.until(lambda s: "ew0 unresponsive" in s["reason"])
            status = await service.status()
            assert status["state"] == "degraded"
            assert (await service.worker("ew0"))["state"] == "unresponsive"
            os.kill(pid, signal.SIGCONT)
            await service.until(lambda s: s["state"] == "serving")
            events = [e["event"] for e in service.timeline() if e.get("worker") == "ew0"]
            assert events[-2:] == ["worker silent", "worker heard again"]

    asyncio.run(scenario())


@pytest.fixture
def head_process(make_config, tmp_path):
    """A head in a process of its own, ready to serve; (process, run directory)."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(make_config()))
    run_dir = tmp_path / "run"
    fake = str(Path(__file__).with_name("fake_worker.py"))
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(config), str(run_dir), fake],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            yield process, run_dir
        finally:
            process.kill()


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.01)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_workers_die_with_a_killed_head_and_status_says_so(head_process):
    process, run_dir = head_process
    pids = [w["pid"] for w in asyncio.run(query_status(run_dir))["workers"]]
    runtime_dir = Path(read_head(run_dir).runtime_dir)
    process.kill()
    wait_gone(pids)
    status = asyncio.run(query_status(run_dir))
    assert status["state"] == "dead"
    assert f"its head (pid {process.pid} " in status["reason"]
    assert {w["state"] for w in status["workers"]} == {"dead"}
    assert runtime_dir.exists()
    assert asyncio.run(stop_run(run_dir, 1.0)) is False
    assert not runtime_dir.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_head_in_good_order(head_process, number):
    process, run_dir = head_process
    pids = [w["pid"] for w in asyncio.run(query_status(run_dir))["workers"]]
    process.send_signal(number)
    assert process.wait(30) == 0
    wait_gone(pids)
    assert asyncio.run(query_status(run_dir))["state"] == "ended"
    assert not Path(read_head(run_dir).runtime_dir).exists()


def test_stop_returns_when_the_head_is_gone(head_process):
    process, run_dir = head_process
    assert asyncio.run(stop_run(run_dir, 5.0)) is True
    assert not Path(f"/proc/{process.pid}/exe").exists()
    timeline = [json.loads(line) for line in (run_dir / "timeline.jsonl").read_text().splitlines()]
    assert [e["reason"] for e in timeline if e["event"] == "stop began"] == [
        "a client asked for it"
    ]


def test_a_stopped_head_does_not_stop_its_workers(head_process):
    """Invariant 3: nobody waits for the head. Here: the workers neither exit nor are they lost."""
    process, run_dir = head_process
    pids = [w["pid"] for w in asyncio.run(query_status(run_dir))["workers"]]
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    process.send_signal(signal.SIGCONT)
    status = asyncio.run(query_status(run_dir))
    assert {w["state"] for w in status["workers"]} == {"serving"}
    timeline = (run_dir / "timeline.jsonl").read_text()
    assert "worker silent" not in timeline
