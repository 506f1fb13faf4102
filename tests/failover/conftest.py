"""A whole head with real worker processes that have no engine: seconds, not minutes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tarragon_hpc.cluster import launching
from tarragon_hpc.cluster.client import query_status
from tarragon_hpc.cluster.head import RunInfo, run_service
from tarragon_hpc.cluster.rendezvous import read_head, run_secret
from tarragon_hpc.config import Config, load_config
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import connect
from tarragon_hpc.wire.to_client import Error
from tarragon_hpc.wire.to_head import ScaleRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FAKE = Path(__file__).with_name("fake_worker.py")


class Service:
    """A running service and how tests look at it."""

    def __init__(self, info: RunInfo, stop: asyncio.Event, task: asyncio.Task[int]) -> None:
        self.info = info
        self.stop = stop
        self.task = task
        self.http = httpx.AsyncClient(base_url=info.endpoint, timeout=20)

    async def status(self) -> dict[str, Any]:
        return await query_status(self.info.run_dir)

    async def until(self, condition: Callable[[dict[str, Any]], Any]) -> None:
        """Until the status fulfils a condition; fails after 20 s."""
        async with asyncio.timeout(20):
            while not condition(await self.status()):
                await asyncio.sleep(0.005)

    async def worker(self, name: str) -> dict[str, Any]:
        return next(w for w in (await self.status())["workers"] if w["id"] == name)

    async def complete(self, tokens: int, prompt: list[int] | None = None) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt or [5, 6], "max_tokens": tokens}
        return await self.http.post("/completions", json=body)

    async def scale(self, role: str, count: int) -> str | None:
        """What the head answers to a ScaleRun: why not, or None."""
        record, secret = read_head(self.info.run_dir), run_secret(self.info.run_dir)
        where = record.control_host, record.control_port
        client = await connect(*where, secret, client_decoder())
        client.send(ScaleRun(role, count))
        async with asyncio.timeout(10):
            reply = await anext(client.messages())
        await client.close()
        return reply.message if isinstance(reply, Error) else None

    def told(self, worker: str) -> list[str]:
        """The events about a worker in the timeline."""
        return [e["event"] for e in self.timeline() if e.get("worker") == worker]

    def timeline(self) -> list[dict[str, Any]]:
        text = (self.info.run_dir / "timeline.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def runtime_root(monkeypatch, tmp_path):
    """Where the runtime directories of this test are, and of nobody else's; a short path.

    Asks for `tmp_path` so that pytest has made its own directories elsewhere before.
    """
    with tempfile.TemporaryDirectory() as root:
        monkeypatch.setenv("TMPDIR", root)
        monkeypatch.setattr(tempfile, "tempdir", root)
        yield Path(root)


@pytest.fixture
def make_config(tiny_models, tmp_path: Path) -> Callable[..., Config]:
    def make(**sections: dict[str, Any]) -> Config:
        data = {
            "model": {"path": str(tiny_models("mixtral")), "served_name": "tiny"},
            "gateway": {"port": 0},
            "detection": {"heartbeat_ms": 50, "heartbeat_misses": 20},
            "cluster": {"start_timeout_s": 60, "drain_timeout_s": 10},
            "run": {"root": str(tmp_path / "runs")},
        }
        return load_config({k: data.get(k, {}) | sections.get(k, {}) for k in data | sections})

    return make


@pytest.fixture
def fake_workers(monkeypatch) -> Callable[[str], None]:
    """Have `run_service` start fake workers, one of them with a fault."""

    real = launching.plan_workers

    def choose(fault: str = "") -> None:
        def plan(*args: Any) -> Any:
            program = (sys.executable, str(FAKE), fault)
            return [dataclasses.replace(spec, program=program) for spec in real(*args)]

        monkeypatch.setattr(launching, "plan_workers", plan)

    choose()
    return choose


@pytest.fixture
def serving(fake_workers) -> Callable[[Config], contextlib.AbstractAsyncContextManager[Service]]:
    """A service that is stopped at the end, whatever the test did."""

    @contextlib.asynccontextmanager
    async def run(config: Config) -> AsyncIterator[Service]:
        ready: asyncio.Future[RunInfo] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = asyncio.create_task(run_service(config, on_ready=ready.set_result, stop=stop))
        try:
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            service = Service(ready.result(), stop, task)
            async with service.http:
                yield service
        finally:
            stop.set()
            await asyncio.wait([task], timeout=30)
        assert task.result() == 0

    return run
