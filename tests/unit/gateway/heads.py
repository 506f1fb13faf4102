"""Heads of one run, one after the other, on one run directory, with a made-up AW; no sockets."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager

import httpx
import msgspec
from prometheus_client import CollectorRegistry

from tarragon_hpc.config import load_config
from tarragon_hpc.gateway.app import create_app
from tarragon_hpc.gateway.request_log import RequestLog
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.wire.to_head import Tokens
from tests.unit.gateway.conftest import FakeWorker, model_spec


class Bursts(FakeWorker):
    """Sends so many tokens at once as `sizes` says, one sequence's after the other's."""

    def __init__(self, seed):
        super().__init__()
        self.masked = 1
        self.sizes = random.Random(seed)
        self.held = {}

    def attach(self, sessions):
        real = sessions

        class Through:
            def __getattr__(_, name):
                return getattr(real, name)

            def on_tokens(_, message):
                self.hold_back(real, message)

        super().attach(Through())

    def hold_back(self, sessions, message):
        """Collect a sequence's tokens into a burst; the last token ends one."""
        (delta,) = message.items
        if delta.index:  # how a burst is cut must not show
            delta = msgspec.structs.replace(delta, masked=0)
        key = (delta.request, delta.attempt)
        held = self.held.setdefault(key, [])
        held.append(delta)
        if delta.finish is None and delta.index and self.sizes.random() < 0.6:
            return
        del self.held[key]
        first, last = held[0], held[-1]
        whole = type(delta)(
            delta.request,
            first.index,
            [t for d in held for t in d.token_ids],
            None if delta.logprobs is None else [s for d in held for s in d.logprobs],
            last.finish,
            last.stop_reason,
            sum(d.masked for d in held),
            delta.attempt,
        )
        sessions.on_tokens(Tokens(message.worker, message.incarnation, [whole]))


class Head:
    """One head. `post` and `get` are its HTTP; `events` reads a stream as (number, data)."""

    def __init__(self, model_dir, run_dir, number, worker, **gateway):
        config = load_config({"model": {"path": str(model_dir)}, "gateway": gateway})
        self.worker = worker
        self.notes = RequestLog()
        self.sessions = Sessions(
            worker, config.gateway.max_requests, notebook=self.notes, failover_timeout_s=5
        )
        self.app = create_app(
            sessions=self.sessions, spec=model_spec(model_dir), config=config, status=dict,
            registry=CollectorRegistry(), notes=self.notes,
        )  # fmt: skip
        self.keeper = self.app.state.keeper
        self.taken_over = self.keeper.take_over(run_dir, number)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://head", timeout=20
        )

    def serve(self):
        """The AW is there."""
        self.worker.attach(self.sessions)
        self.sessions.set_serving(True, "")

    async def post(self, path, body, **headers):
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.http.post(f"/v1/{path}", json=body, headers=headers)

    async def get(self, name, after=0):
        return await self.http.get(f"/v1/requests/{name}/stream", params={"after": after})

    async def events(self, name, after=0):
        response = await self.get(name, after)
        assert response.status_code == 200, response.text
        return response.text

    async def close(self):
        """As if the process had died: nothing is told to anybody, in the log least of all."""
        self.notes.close()
        await self.http.aclose()


@asynccontextmanager
async def head(*args, **config):
    one = Head(*args, **config)
    try:
        yield one
    finally:
        await one.close()


def parsed(text):
    """(number, data) of every event; data is decoded unless it is DONE."""
    *parts, end = text.split("\n\n")
    assert end == ""
    pairs = [part.split("\n") for part in parts]
    return [
        (int(n.removeprefix("id: ")), data if "[DONE]" in data else json.loads(data[6:]))
        for n, data in pairs
    ]
