from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.generate.client import BatchClient, idempotency_key
from tarragon_hpc.generate.inputs import COMPLETIONS, Request


async def no_wait(_seconds):
    await asyncio.sleep(0)


class Gateway:
    """Answers each prompt with the next status of its script, then 200; counts what is open."""

    def __init__(self, script=None):
        self.script = {k: list(v) for k, v in (script or {}).items()}
        self.seen = []
        self.open = self.most = 0
        self.headers = None

    async def __call__(self, http_request):
        body = json.loads(http_request.content)
        self.seen.append(body)
        self.headers = http_request.headers
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        step = next(iter(self.script.get(body["prompt"], [])[:1]), 200)
        if body["prompt"] in self.script and self.script[body["prompt"]]:
            self.script[body["prompt"]].pop(0)
        if isinstance(step, Exception):
            raise step
        reply = {"echo": body["prompt"]} if step == 200 else {"error": {"message": "no"}}
        return httpx.Response(step, json=reply, headers={"x-request-id": "r"})


def run(gateway, prompts, *, concurrency=4, outcomes=None, **options):
    requests = [Request(p, i, COMPLETIONS, {"prompt": p}) for i, p in enumerate(prompts, 1)]
    outcomes = [] if outcomes is None else outcomes
    client = BatchClient(
        "http://gateway/v1", concurrency=concurrency, sleep=no_wait,
        transport=httpx.MockTransport(gateway), **options,
    )  # fmt: skip
    asyncio.run(client.run(requests, outcomes.append))
    return outcomes


def test_every_request_is_answered_once_and_few_are_open_at_a_time():
    gateway = Gateway()
    prompts = [f"p{i}" for i in range(50)]
    outcomes = run(gateway, prompts, concurrency=3)
    assert sorted(o.custom_id for o in outcomes) == sorted(prompts)
    assert {o.status for o in outcomes} == {200}
    assert gateway.most == 3


def test_busy_and_broken_connections_are_tried_again():
    gateway = Gateway({"a": [429, 503, httpx.ReadError("cut")], "b": [429] * 50})
    outcomes = run(gateway, ["a", "b"])
    assert [o.status for o in outcomes] == [200, 200]
    assert len(gateway.seen) == 4 + 51


@pytest.mark.parametrize("status", [400, 404, 413, 500, 502])
def test_other_answers_are_results(status):
    (outcome,) = run(Gateway({"a": [status]}), ["a"])
    assert outcome.status == status
    assert outcome.body == {"error": {"message": "no"}}
    assert outcome.final == (status < 500)


@pytest.mark.parametrize("step", [503, httpx.ConnectError("refused")])
def test_a_service_that_stays_away_ends_the_batch(step):
    gateway = Gateway({"b": [step] * 1000, "c": [step] * 1000})
    outcomes = []
    with pytest.raises(ClusterError, match="does not answer"):
        run(gateway, ["a", "b", "c"], outcomes=outcomes)
    assert [o.custom_id for o in outcomes] == ["a"]


def test_the_body_is_sent_as_it_is_and_with_the_key():
    gateway = Gateway()
    client = BatchClient(
        "http://gateway/v1", concurrency=1, api_key="s3cret",
        transport=httpx.MockTransport(gateway),
    )  # fmt: skip
    request = Request("a", 1, COMPLETIONS, {"prompt": "x", "model": "other"})
    asyncio.run(client.run([request], lambda _: None))
    assert gateway.seen == [{"prompt": "x", "model": "other"}]
    assert gateway.headers["authorization"] == "Bearer s3cret"


def test_a_request_has_a_key_of_its_own_that_stays_when_it_is_sent_again():
    keys = []

    async def gateway(http_request):
        keys.append(http_request.headers["idempotency-key"])
        return httpx.Response(503 if keys.count(keys[-1]) < 3 else 200, json={})

    run(gateway, ["a", "b"])
    assert len(set(keys)) == 2
    assert sorted(map(keys.count, set(keys))) == [3, 3]
    same = Request("a", 7, COMPLETIONS, {"x": 1, "prompt": "a"})
    assert idempotency_key(same) == idempotency_key(
        Request("a", 1, COMPLETIONS, {"prompt": "a", "x": 1})
    )
    others = [Request("b", 7, COMPLETIONS, same.body), Request("a", 7, COMPLETIONS, {"x": 1})]
    assert idempotency_key(same) not in map(idempotency_key, others)


def test_where_the_service_is_is_asked_again_when_it_is_gone():
    heads = iter(["http://one/v1", None, "http://two/v1"])
    seen = []

    def where():
        head = next(heads)
        if head is None:
            raise ClusterError("no head has written where it listens")
        return head

    async def gateway(http_request):
        seen.append(http_request.url.host)
        if http_request.url.host == "one":
            raise httpx.ReadError("cut")
        return httpx.Response(200, json={})

    outcomes = []
    client = BatchClient(
        where, concurrency=1, sleep=no_wait, transport=httpx.MockTransport(gateway)
    )
    requests = [Request(c, 1, COMPLETIONS, {"prompt": c}) for c in "ab"]
    asyncio.run(client.run(requests, outcomes.append))
    assert [o.status for o in outcomes] == [200, 200]
    assert seen == ["one", "two", "two"]


def test_a_patient_client_goes_beyond_the_usual_tries():
    gateway = Gateway({"a": [httpx.ConnectError("refused")] * 30})
    assert [o.status for o in run(gateway, ["a"], patient=True)] == [200]
