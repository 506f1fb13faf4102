"""The head is killed in mid-stream: the next one on the run directory tells what it had told."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tarragon_hpc.cluster.rendezvous import create_run, read_head
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.generate.client import BatchClient
from tarragon_hpc.generate.inputs import COMPLETIONS, Request
from tests.failover.test_takeover import Heads

TOKENS = 300
COMMON = {"max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
TALK = [{"role": "user", "content": "hi"}]
STREAMS = {
    "greedy": ("completions", {"prompt": [5, 6], "temperature": 0, "logprobs": 2}),
    "seeded": ("completions", {"prompt": [[7], [8, 9]], "n": 2, "seed": 3}),
    "unseeded": ("completions", {"prompt": [5], "n": 2, "stream_options": USAGE}),
    "chat": ("chat/completions", {"messages": TALK, "logprobs": True, "top_logprobs": 1}),
}


class Run(Heads):
    """A run whose workers outlive its heads, for clients that have an event loop."""

    async def next(self) -> str:
        """Start the next head, wait until it serves; its endpoint."""
        number = len(self.processes) + 1
        self.start()
        up = lambda s: s["state"] == "serving" and s["head"] == number  # noqa: E731
        await asyncio.to_thread(self.until, up, 240)
        return self.endpoint()

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()

    def endpoint(self) -> str:
        return read_head(self.run_dir).endpoint


class Client:
    """Reads one stream to its end, over as many heads as that takes. text: all it got."""

    def __init__(self, run: Run, name: str, path: str, body: dict) -> None:
        self.run, self.path = run, path
        self.body = COMMON | body | {"stream": True, "resumable": True, "request_id": name}
        self.name = f"{'chatcmpl' if 'chat' in path else 'cmpl'}-{name}"
        self.text, self.broken = "", 0

    @property
    def events(self) -> int:
        return self.text.count("\n\n")

    async def read(self) -> None:
        async with asyncio.timeout(240), httpx.AsyncClient(timeout=30) as http:
            while not self.text.endswith("[DONE]\n\n"):
                try:
                    await self._read(http)
                except (httpx.HTTPError, ClusterError):
                    self.broken += 1
                # What was not told whole was not told.
                self.text = self.text[: self.text.rfind("\n\n") + 2] if self.events else ""
                self._forget_handover()
                await asyncio.sleep(0.05)

    def _forget_handover(self) -> None:
        """The last words of a head that leaves on purpose: to come back. They have no number."""
        before, mark, last = self.text[:-2].rpartition("\n\n")
        if '"handover"' in last and not last.startswith("id: "):
            self.text = before + mark
            self.broken += 1

    async def _read(self, http: httpx.AsyncClient) -> None:
        base = self.run.endpoint()
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
def run(make_config, tmp_path):
    config = make_config(
        cluster={"backend": "slurm", "head_lease_s": 120, "drain_timeout_s": 1},
        transport={"interface": "lo"},
        gateway={"resume_s": 60},
        checkpoint={"stores": 1},
    )
    one = Run(create_run(config, tmp_path / "run"))
    yield one
    one.close()


def test_streams_over_three_heads(run):

    async def scenario() -> None:
        endpoint = await run.next()
        async with httpx.AsyncClient(timeout=60) as http:
            whole = COMMON | {"prompt": [11], "seed": 5}
            plain = (await http.post(f"{endpoint}/completions", json=whole)).json()
        stop = plain["choices"][0]["text"][-9:-3]
        assert plain["choices"][0]["text"].find(stop) > 100
        stopped = {"prompt": [11], "seed": 5, "stop": [stop], "n": 1, "stream_options": USAGE}
        asked = STREAMS | {"stopped": ("completions", stopped)}
        clients = [Client(run, name, *request) for name, request in asked.items()]
        reading = [asyncio.create_task(client.read()) for client in clients]
        for least in (10, 120):
            async with asyncio.timeout(100):
                while any(c.events < least for c in clients):
                    await asyncio.sleep(0.01)
            run.kill()
            endpoint = await run.next()
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
        assert read_head(run.run_dir).incarnation == 3

    asyncio.run(scenario())


def test_a_batch_over_two_heads(run):
    """Its client is elsewhere: it waits, finds the next head, and gets each answer once."""
    requests = [
        Request(f"c{i}", i, COMPLETIONS, COMMON | {"prompt": [5 + i], "max_tokens": 300})
        for i in range(12)
    ]

    async def scenario() -> None:
        endpoint = await run.next()
        outcomes = []
        client = BatchClient(run.endpoint, concurrency=6, patient=True)
        running = asyncio.create_task(client.run(requests, outcomes.append))
        async with asyncio.timeout(100), httpx.AsyncClient() as http:
            tokens = 0
            while tokens < 800:
                await asyncio.sleep(0.02)
                status = await http.get(endpoint.replace("/v1", "/status"))
                tokens = status.json()["requests"]["tokens"]
        run.kill()
        endpoint = await run.next()
        await asyncio.wait_for(running, 100)
        assert sorted(o.custom_id for o in outcomes) == sorted(r.custom_id for r in requests)
        assert {o.status for o in outcomes} == {200}
        lengths = {len(o.body["choices"][0]["token_ids"]) for o in outcomes}
        assert lengths == {300}
        async with httpx.AsyncClient() as http:
            status = await http.get(endpoint.replace("/v1", "/status"))
        # Those that ran went on: the new head has not generated their tokens again.
        assert 0 < status.json()["requests"]["tokens"] < 12 * 300 - 700
        assert status.json()["requests"]["moved"] > 0

    asyncio.run(scenario())
