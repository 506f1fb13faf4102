"""Requests that are sent again under their key, and what a head that hands over tells."""

from __future__ import annotations

import asyncio
import json

from tarragon_hpc.wire.to_head import Failed
from tests.unit.gateway.conftest import FakeWorker
from tests.unit.gateway.heads import head, parsed
from tests.unit.gateway.test_takeover import TALK, run


def test_a_head_that_hands_over_says_so_without_a_number(model_dir, tmp_path):
    body = {"prompt": "p", "request_id": "h", "max_tokens": 8, "seed": 3, "ignore_eos": True}
    stream = body | {"stream": True, "resumable": True, "n": 2}

    async def live():
        async with head(model_dir, tmp_path, 1, FakeWorker()) as first:
            first.worker.hold = 3
            first.serve()
            reading = asyncio.create_task(first.post("completions", stream))
            asking = asyncio.create_task(first.post("completions", body, idempotency_key="k"))
            while first.sessions.stats().tokens < 9:
                await asyncio.sleep(0)
            first.sessions.hand_over("the time limit is near")
            assert not await first.sessions.quiet(0)
            first.keeper.suspend("the time limit is near; the service goes on after that")
            first.sessions.cut()
            *events, farewell, end = (await reading).text.split("\n\n")
            assert (len(events), end) == (6, "")
            assert "goes on" in json.loads(farewell.removeprefix("data: "))["error"][
                "message"
            ]  # fmt: skip
            assert (await asking).json()["error"]["code"] == "handover"
        async with head(model_dir, tmp_path, 2, FakeWorker()) as later:
            asking = asyncio.create_task(later.post("completions", body, idempotency_key="k"))
            await asyncio.sleep(0.01)
            later.serve()
            assert [len(m.tokens) for m in later.worker.submitted] == [3, 3, 3]
            text = "".join(e + "\n\n" for e in events) + await later.events("cmpl-h", 6)
            answer = (await asking).json()
            plain = (await later.post("completions", body)).json()
            assert answer["choices"] == plain["choices"]
            assert parsed(text) == parsed(await later.events("cmpl-h"))
            assert [n for n, _ in parsed(text)] == list(range(1, 18))

    run(live())


def test_a_key_stands_for_one_request(model_dir, tmp_path):
    body = {"prompt": "p", "max_tokens": 4, "ignore_eos": True}

    async def live():
        async with head(model_dir, tmp_path, 1, FakeWorker()) as first:
            first.serve()
            first.worker.hold = 2
            both = [
                asyncio.create_task(first.post("completions", body, idempotency_key="k"))
                for _ in range(2)
            ]
            while first.sessions.stats().tokens < 2:
                await asyncio.sleep(0)
            first.worker.hold = None
            first.worker._step(first.worker.submitted[0], 2)
            one, two = [(await task).json() for task in both]
            reordered = dict(reversed(body.items()))
            three = (await first.post("completions", reordered, idempotency_key="k")).json()
            assert one == two == three
            assert len(first.worker.submitted) == 1
            other = await first.post("completions", body | {"max_tokens": 5}, idempotency_key="k")
            assert other.status_code == 409
            assert other.json()["error"]["code"] == "idempotency_key_reused"
            assert "'k'" in (m := other.json()["error"]["message"]) or '"k"' in m
            chat = {"messages": TALK}
            assert (
                await first.post("chat/completions", chat, idempotency_key="k")
            ).status_code == 409
            bad = await first.post("completions", body, idempotency_key="")
            assert bad.status_code == 400
            assert bad.json()["error"]["param"] == "Idempotency-Key"
            # What failed is tried again.
            first.worker.hold = 0
            first.worker.react = lambda m: first.sessions.on_failed(
                Failed("aw0", 1, [m.request], "ew0 is lost", again=False)
            )
            failed = await first.post("completions", body, idempotency_key="new")
            assert failed.status_code == 503
            first.worker.hold, first.worker.react = None, None
            again = await first.post("completions", body, idempotency_key="new")
            assert again.status_code == 200

    run(live())
