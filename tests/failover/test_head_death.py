"""The head is killed in mid-stream: the next one on the run directory tells what it had told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING

import httpx
import pytest

from tarragon_hpc.cluster.client import stop_run
from tarragon_hpc.cluster.rendezvous import create_run, read_head
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.generate.client import BatchClient
from tarragon_hpc.generate.inputs import COMPLETIONS, Request
from tests.failover.conftest import FAKE

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = 300
HEAD = """
import asyncio, dataclasses, sys
from pathlib import Path
from tarragon_hpc.cluster import assemble, launching
from tarragon_hpc.cluster.head import run_service
from tarragon_hpc.config import load_config
real = launching.plan_workers
program = (sys.executable, sys.argv[2], "")
launching.plan_workers = lambda *a: [dataclasses.replace(s, program=program) for s in real(*a)]
# Local workers die with their head; that they are replaced then is left to another backend else.
inherited = assemble.inherited
assemble.inherited = lambda run_dir, head, backend: inherited(run_dir, head, "slurm")
async def main():
    run = Path(sys.argv[1])
    ready = lambda info: print(info.endpoint, flush=True)
    config = load_config(run / "config.yaml")
    await run_service(config, run=run, on_ready=ready, stop=asyncio.Event())
asyncio.run(main())
"""
COMMON = {"max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
TALK = [{"role": "user", "content": "hi"}]
STREAMS = {
    "greedy": ("completions", {"prompt": [5, 6], "temperature": 0, "logprobs": 2}),
    "seeded": ("completions", {"prompt": [[7], [8, 9]], "n": 2, "seed": 3}),
    "unseeded": ("completions", {"prompt": [5], "n": 2, "stream_options": USAGE}),
    "chat": ("chat/completions", {"messages": TALK, "logprobs": True, "top_logprobs": 1}),
}


class Heads:
    """The heads of one run, one after the other."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Start the next head, wait until it serves; its endpoint."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HEAD, str(self.run_dir), str(FAKE), stdout=PIPE
        )
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        assert line, "the head has not come up"
        return line.decode().strip()

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ClusterError):
                await stop_run(self.run_dir, 1.0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), 20)
            if self.process.returncode is None:
                await self.kill()

    def endpoint(self) -> str:
        return read_head(self.run_dir).endpoint


class Client:
    """Reads one stream to its end, over as many heads as that takes. text: all it got."""

    def __init__(self, heads: Heads, name: str, path: str, body: dict) -> None:
        self.heads, self.path = heads, path
        self.body = COMMON | body | {"stream": True, "resumable": True, "request_id": name}
        self.name = f"{'chatcmpl' if 'chat' in path else 'cmpl'}-{name}"
        self.text, self.broken = "", 0

    @property
    def events(self) -> int:
        return self.text.count("\n\n")

    async def read(self) -> None:
        async with asyncio.timeout(120), httpx.AsyncClient(timeout=30) as http:
            while not self.text.endswith("[DONE]\n\n"):
                try:
                    await self._read(http)
                except (httpx.HTTPError, ClusterError):
                    self.broken += 1
                # What was not told whole was not told.
                self.text = self.text[: self.text.rfind("\n\n") + 2] if self.events else ""
                await asyncio.sleep(0.05)

    async def _read(self, http: httpx.AsyncClient) -> None:
        base = self.heads.endpoint()
        if not self.events:
            call = http.stream("POST", f"{base}/{self.path}", json=self.body)
        else:
            number = {"Last-Event-ID": str(self.events)}
            call = http.stream("GET", f"{base}/requests/{self.name}/stream", headers=number)
        async with call as answer:
            if answer.status_code == 503:
                return
            assert answer.status_code == 200, await answer.aread()
            async for chunk in answer.aiter_text():
                self.text += chunk

    def parsed(self) -> list[tuple[int, dict]]:
        pairs = [part.split("\n") for part in self.text.split("\n\n")[:-2]]
        return [(int(number[4:]), json.loads(data[6:])) for number, data in pairs]

    def tokens(self) -> dict[int, list[int]]:
        """Of every choice."""
        tokens: dict[int, list[int]] = {}
        for _, data in self.parsed():
            for choice in data["choices"]:
                tokens.setdefault(choice["index"], []).extend(choice.get("token_ids", []))
        return tokens


@pytest.fixture
def run_dir(make_config, tmp_path) -> Path:
    config = make_config(
        cluster={"drain_timeout_s": 1, "head_lease_s": 1}, gateway={"resume_s": 60}
    )
    return create_run(config, tmp_path / "run")


def test_streams_over_three_heads(run_dir):
    heads = Heads(run_dir)

    async def scenario() -> None:
        endpoint = await heads.start()
        async with httpx.AsyncClient(timeout=60) as http:
            whole = COMMON | {"prompt": [11], "seed": 5}
            plain = (await http.post(f"{endpoint}/completions", json=whole)).json()
        stop = plain["choices"][0]["text"][-9:-3]
        assert plain["choices"][0]["text"].find(stop) > 100
        stopped = {"prompt": [11], "seed": 5, "stop": [stop], "n": 1, "stream_options": USAGE}
        asked = STREAMS | {"stopped": ("completions", stopped)}
        clients = [Client(heads, name, *request) for name, request in asked.items()]
        reading = [asyncio.create_task(client.read()) for client in clients]
        for least in (10, 120):
            async with asyncio.timeout(60):
                while any(c.events < least for c in clients):
                    await asyncio.sleep(0.01)
            await heads.kill()
            endpoint = await heads.start()
        await asyncio.gather(*reading)
        assert all(client.broken >= 2 for client in clients)
        for client in clients:
            numbers = [number for number, _ in client.parsed()]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len({(d["id"], d["created"], d["model"]) for _, d in client.parsed()}) == 1
            # What it got from three heads is what the last one tells from the beginning.
            async with httpx.AsyncClient(timeout=60) as http:
                again = await http.get(f"{endpoint}/requests/{client.name}/stream")
                assert again.text == client.text
        by_name = {c.name.split("-")[1]: c for c in clients}
        for name in STREAMS:
            assert {len(t) for t in by_name[name].tokens().values()} == {TOKENS}
        unseeded = by_name["unseeded"].tokens()
        assert unseeded[0] != unseeded[1]
        async with httpx.AsyncClient(timeout=60) as http:
            path, body = STREAMS["seeded"]
            alone = (await http.post(f"{endpoint}/{path}", json=COMMON | body)).json()
        got = {c["index"]: c["token_ids"] for c in alone["choices"]}
        assert by_name["seeded"].tokens() == got
        texts = [d["choices"][0]["text"] for _, d in by_name["stopped"].parsed() if d["choices"]]
        before, _, _ = plain["choices"][0]["text"].partition(stop)
        assert "".join(texts) == before
        assert read_head(run_dir).incarnation == 3

    async def guarded() -> None:
        try:
            await scenario()
        finally:
            await heads.stop()

    asyncio.run(guarded())


def test_a_batch_over_two_heads(run_dir):
    """Its client is elsewhere: it waits, finds the next head, and gets each answer once."""
    heads = Heads(run_dir)
    requests = [
        Request(f"c{i}", i, COMPLETIONS, COMMON | {"prompt": [5 + i], "max_tokens": 300})
        for i in range(12)
    ]

    async def scenario() -> None:
        endpoint = await heads.start()
        outcomes = []
        client = BatchClient(heads.endpoint, concurrency=6, patient=True)
        running = asyncio.create_task(client.run(requests, outcomes.append))
        async with asyncio.timeout(60), httpx.AsyncClient() as http:
            tokens = 0
            while tokens < 800:
                await asyncio.sleep(0.02)
                status = await http.get(endpoint.replace("/v1", "/status"))
                tokens = status.json()["requests"]["tokens"]
        await heads.kill()
        endpoint = await heads.start()
        await asyncio.wait_for(running, 60)
        assert sorted(o.custom_id for o in outcomes) == sorted(r.custom_id for r in requests)
        assert {o.status for o in outcomes} == {200}
        lengths = {len(o.body["choices"][0]["token_ids"]) for o in outcomes}
        assert lengths == {300}
        async with httpx.AsyncClient() as http:
            status = await http.get(endpoint.replace("/v1", "/status"))
        # Those that ran went on: the new head has not generated their tokens again.
        assert 0 < status.json()["requests"]["tokens"] < 12 * 300 - 700
        assert status.json()["requests"]["moved"] > 0

    async def guarded() -> None:
        try:
            await scenario()
        finally:
            await heads.stop()

    asyncio.run(guarded())
