"""A head dies, the next one goes on: streams and answers are the same, wherever the log ends."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarragon_hpc.gateway.records import Produced, decode, encode, merge
from tarragon_hpc.gateway.request_log import log_files, recover
from tarragon_hpc.wire.to_head import Failed
from tests.unit.gateway.conftest import FakeWorker
from tests.unit.gateway.heads import Bursts, head, parsed

COMMON = {"max_tokens": 9, "ignore_eos": True, "temperature": 1.0}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
TALK = [{"role": "user", "content": "hi"}]
STREAMS = {
    "greedy": ("completions", {"prompt": "hi", "temperature": 0, "logprobs": 2}),
    "seeded": ("completions", {"prompt": ["a", "b b"], "n": 2, "seed": 3}),
    "unseeded": ("completions", {"prompt": [5, 6], "n": 3, "return_token_ids": True}),
    "usage": ("completions", {"prompt": "u", "n": 2, "stream_options": USAGE}),
    "chat": ("chat/completions", {"messages": TALK, "logprobs": True, "top_logprobs": 1, "n": 2}),
    "chat-ids": (
        "chat/completions",
        {"messages": TALK, "return_token_ids": True, "stream_options": USAGE},
    ),
    "choice": ("completions", {"prompt": "x", "structured_outputs": {"choice": ["a", "b"]}}),
}
ANSWERS = {
    "key-1": ("completions", {"prompt": "hi", "n": 2, "logprobs": 1}),
    "key-2": ("chat/completions", {"messages": TALK, "seed": 4}),
}


def stream_body(name):
    path, body = STREAMS[name]
    return path, COMMON | body | {"stream": True, "resumable": True, "request_id": name}


def stream_id(name):
    return f"{'chatcmpl' if STREAMS[name][0].startswith('chat') else 'cmpl'}-{name}"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Life:
    """What a head has left: its log, and what its clients got by name or key."""

    def __init__(self, log, streams, answers):
        self.log, self.streams, self.answers = log, streams, answers
        kept, wrong = merge([("log", self.log)])
        assert wrong == []
        self.logs = {n: g for k in kept for n, g in zip(k.opened.sequences, k.logs, strict=True)}


@pytest.fixture(scope="module")
def life(model_dir, tmp_path_factory):
    """The log of a head that has answered everything, and what its clients got."""
    path = tmp_path_factory.mktemp("run")

    async def live():
        streams, answers = {}, {}
        async with head(model_dir, path, 1, Bursts(1)) as first:
            first.serve()

            async def stream(name):
                response = await first.post(*stream_body(name), x_request_id=f"x-{name}")
                assert response.status_code == 200, response.text
                streams[name] = response.text

            async def answer(key):
                kind, body = ANSWERS[key]
                response = await first.post(kind, COMMON | body, idempotency_key=key)
                answers[key] = response.json()

            await asyncio.gather(*map(stream, STREAMS), *map(answer, ANSWERS))
        return Life((path / "requests.1.jsonl").read_bytes(), streams, answers)

    return run(live())


def test_what_is_compared_is_worth_it(life):
    assert all(text.endswith("data: [DONE]\n\n") for text in life.streams.values())
    tokens = [json.loads(line) for line in life.log.splitlines() if b'"tokens"' in line]
    assert max(len(i[2]) for line in tokens for i in line["items"]) > 3
    seeds = [
        s["seed"]
        for line in life.log.splitlines()
        if b'"opened"' in line and b"cmpl-unseeded" in line
        for s in json.loads(line)["sampling"]
    ]
    assert len(set(seeds)) == 3
    numbers = [n for n, _ in parsed(life.streams["seeded"])]
    assert numbers == list(range(1, 4 * 9 + 2))


async def go_on(model_dir, path, number, life, seed):
    """The next head answers everything that it knows as the first one did."""
    known = {k.opened.id: k for k in recover(log_files(path))[0]}
    async with head(model_dir, path, number, Bursts(seed)) as later:
        assert later.taken_over == len(known)
        later.serve()
        for name, text in life.streams.items():
            if stream_id(name) in known:
                assert await later.events(stream_id(name)) == text
                assert await later.events(f"x-{name}") == text
            else:
                assert (await later.get(stream_id(name))).status_code == 404
        for key, answer in life.answers.items():
            kind, body = ANSWERS[key]
            again = await later.post(kind, COMMON | body, idempotency_key=key)
            if answer["id"] in known:
                assert again.json() == answer
            else:
                assert again.json()["usage"] == answer["usage"]
        for submit in later.worker.submitted:
            if submit.request in life.logs:
                tokens = life.logs[submit.request].token_ids
                assert submit.tokens == tokens[: len(submit.tokens)] != tokens
                assert submit.attempt == (number << 20) + 1


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1), again=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_log_ends_anywhere_twice(life, model_dir, tmp_path_factory, where, again, seed):
    path = tmp_path_factory.mktemp("cut")
    first = life.log[: int(where * len(life.log))]
    (path / "requests.1.jsonl").write_bytes(first)
    run(go_on(model_dir, path, 2, life, seed))
    second = path / "requests.2.jsonl"
    data = second.read_bytes()
    (path / "requests.1.jsonl").write_bytes(first)  # as if it could not be deleted in time
    second.write_bytes(data[: int(again * len(data))])
    run(go_on(model_dir, path, 3, life, seed + 1))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_damaged_byte_costs_no_more_than_its_line(life, model_dir, tmp_path_factory, where, byte):
    """Or two, if it was the end of one. What is left is never another request than it was."""
    path = tmp_path_factory.mktemp("damaged")
    data = bytearray(life.log)
    data[int(where * (len(data) - 1))] = byte
    (path / "requests.1.jsonl").write_bytes(data)

    async def live():
        async with head(model_dir, path, 2, Bursts(6)) as later:
            assert later.taken_over >= len(STREAMS) + len(ANSWERS) - 2
            later.serve()
            texts = [(await later.get(stream_id(n))).text for n in STREAMS]
            same = [text == life.streams[n] for n, text in zip(STREAMS, texts, strict=True)]
            assert sum(same) >= len(STREAMS) - 2
            left = [text for text in texts if "request_not_found" not in text]
            assert len(left) == sum(same)

    run(live())


def lines(text, count):
    return "".join(part + "\n\n" for part in text.split("\n\n")[:count])


@pytest.mark.parametrize("count", [0, 1, 5, 10])
def test_the_client_goes_on_from_the_event_that_it_has(life, model_dir, tmp_path, count):
    (tmp_path / "requests.1.jsonl").write_bytes(life.log[: len(life.log) // 2])

    async def live():
        async with head(model_dir, tmp_path, 2, Bursts(5)) as later:
            later.serve()
            for name, text in life.streams.items():
                rest = await later.events(stream_id(name), count)
                assert lines(text, count) + rest == text

    run(live())


def test_a_client_that_has_more_than_the_log_waits_for_the_rest(life, model_dir, tmp_path):
    """The node is gone, and with it the end of the log: the seed makes the same tokens again."""
    opened = [line for line in life.log.splitlines(keepends=True) if b'"opened"' in line]
    (tmp_path / "requests.1.jsonl").write_bytes(b"".join(opened))

    async def live():
        async with head(model_dir, tmp_path, 2, Bursts(5)) as later:
            reading = asyncio.create_task(later.events(stream_id("unseeded"), 12))
            await asyncio.sleep(0.05)
            assert not reading.done()
            later.serve()
            text = life.streams["unseeded"]
            assert lines(text, 12) + await reading == text
            beyond = await later.get(stream_id("unseeded"), 99)
            assert beyond.status_code == 400

    run(live())


def test_time_is_counted_from_when_the_service_serves_again(life, model_dir, tmp_path):
    (tmp_path / "requests.1.jsonl").write_bytes(life.log)

    async def live():
        async with head(model_dir, tmp_path, 2, FakeWorker(), resume_s=0.3) as later:
            await asyncio.sleep(0.5)
            assert (await later.get(stream_id("chat"))).status_code == 200
            later.serve()
            await asyncio.sleep(0.1)
            assert (await later.get(stream_id("chat"))).status_code == 200
            await asyncio.sleep(0.4)
            assert (await later.get(stream_id("chat"))).status_code == 404
            kind, body = ANSWERS["key-1"]
            before = len(later.worker.submitted)
            await later.post(kind, COMMON | body, idempotency_key="key-1")
            assert len(later.worker.submitted) == before + 2
        assert [k.opened.key for k in recover(log_files(tmp_path))[0]] == ["key-1"]

    run(live())


def test_nobody_comes_back_for_what_still_runs(life, model_dir, tmp_path):
    opened = [line for line in life.log.splitlines(keepends=True) if b'"opened"' in line]
    (tmp_path / "requests.1.jsonl").write_bytes(b"".join(opened))

    async def live():
        async with head(model_dir, tmp_path, 2, FakeWorker(), resume_s=0.2) as later:
            later.worker.hold = 2
            later.serve()
            assert later.sessions.stats().open > 10
            await asyncio.sleep(0.5)
            assert later.sessions.stats().open == 0
        assert recover(log_files(tmp_path))[0] == []

    run(live())


def test_stop_strings_across_the_death(model_dir, codec, tmp_path_factory):
    text = "the quick brown fox jumps over the lazy dog"
    script = codec.encode(text, add_special_tokens=False)
    body = {"prompt": "p", "max_tokens": 60, "stream": True, "resumable": True, "request_id": "s",
            "n": 2, "stop": ["n fox ju"], "stream_options": USAGE}  # fmt: skip
    first_dir = tmp_path_factory.mktemp("run")

    def worker(seed):
        made = Bursts(seed)
        made.script = script
        return made

    async def live():
        async with head(model_dir, first_dir, 1, worker(1)) as first:
            first.serve()
            return (await first.post("completions", body)).text

    whole = run(live())
    choices = [c for _, d in parsed(whole)[:-1] for c in d["choices"]]
    assert "".join(c["text"] for c in choices if c["index"] == 1) == "the quick brow"
    assert [c["stop_reason"] for c in choices if c["finish_reason"]] == ["n fox ju"] * 2
    data = (first_dir / "requests.1.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]

    async def later(path, seed):
        async with head(model_dir, path, 2, worker(seed)) as second:
            second.serve()
            return await second.events("cmpl-s"), second.worker.submitted

    for seed, end in enumerate(ends):
        path = tmp_path_factory.mktemp("cut")
        (path / "requests.1.jsonl").write_bytes(data[:end])
        again, submitted = run(later(path, seed))
        assert again == whole
    assert submitted == []  # of the whole log nothing is left to do


def test_an_error_is_the_same_last_event(model_dir, tmp_path):
    body = {"prompt": "p", "stream": True, "resumable": True, "request_id": "e", "n": 2}

    async def live():
        async with head(model_dir, tmp_path, 1, FakeWorker()) as first:
            first.worker.hold = 3
            first.serve()
            posting = asyncio.create_task(first.post("completions", body))
            while first.sessions.stats().tokens < 6:
                await asyncio.sleep(0)
            request = first.worker.submitted[1].request
            first.sessions.on_failed(Failed("aw0", 1, [request], "ew0 is lost", again=False))
            await asyncio.sleep(0)
            first.worker.hold = None
            for message in first.worker.submitted:
                first.worker._step(message, 3)
            text = (await posting).text
        assert "ew0 is lost (3 tokens" in text
        async with head(model_dir, tmp_path, 2, FakeWorker()) as later:
            later.serve()
            assert await later.events("cmpl-e") == text
            assert parsed(text)[-1][0] == 8

    run(live())


def unfinished(line):
    """The line as it were if the AW had died before it could say that it was done."""
    if not isinstance(line, Produced):
        return line
    return Produced([msgspec.structs.replace(i, finish=None) for i in line.items])


def test_a_sequence_that_lacks_only_the_word_that_it_is_done(model_dir, tmp_path):
    body = {"prompt": "p", "stream": True, "resumable": True, "request_id": "f", "max_tokens": 3,
            "temperature": 0}  # fmt: skip

    async def live():
        async with head(model_dir, tmp_path, 1, FakeWorker()) as first:
            first.serve()
            await first.post("completions", body)
        log = tmp_path / "requests.1.jsonl"
        told = [decode(line) for line in log.read_bytes().splitlines()]
        log.write_bytes(b"".join(encode(unfinished(line)) for line in told))
        texts = []
        for number in (2, 3):
            async with head(model_dir, tmp_path, number, FakeWorker()) as later:
                later.serve()
                texts.append(await later.events("cmpl-f"))
                assert later.worker.submitted == []
        assert texts[0] == texts[1]
        *_, last, done = parsed(texts[0])
        assert last[1]["choices"][0]["finish_reason"] == "length"
        assert last[1]["choices"][0]["text"] == ""

    run(live())
