"""The streaming client against scripted answers."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tarragon_hpc.bench.arrivals import Stream
from tarragon_hpc.bench.load import Load, Prompt, follow


def event(ids):
    chunk = {"id": "cmpl-1", "choices": [{"token_ids": ids}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunked(*parts):
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)


DONE = b"data: [DONE]\n\n"
GOOD = chunked(event([5]), event([6, 7]), DONE)


@contextlib.asynccontextmanager
async def gateway(answer, seen):
    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        seen.append((head.split()[1].decode(), json.loads(await reader.readexactly(length))))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def ask(answer):
    """The one stream of a load, and what the server was asked."""
    seen = []

    async def scenario():
        async with gateway(answer, seen) as endpoint:
            load = Load(endpoint, [Prompt([1, 2], 3)], 1)
            await load.once([0])
            return load.all

    (stream,) = asyncio.run(scenario())
    return stream, seen


def test_every_token_has_its_time():
    stream, ((path, body),) = ask(GOOD)
    assert path == "/v1/completions"
    assert (body["prompt"], body["max_tokens"], body["temperature"]) == ([1, 2], 3, 0)
    assert stream.tokens == [5, 6, 7]
    assert stream.began <= stream.times[0] <= stream.times[1] == stream.times[2]
    assert stream.done
    assert stream.id == "cmpl-1"
    assert "seed" not in body


def test_sampled_prompts_bring_their_seed():
    body = Prompt([1], 2, 0.8, 7).body()
    assert (body["temperature"], body["seed"]) == (0.8, 7)


def test_whoever_follows_a_stream_hears_of_every_piece():
    lengths = []

    async def scenario():
        async with gateway(GOOD, []) as endpoint:
            stream = Stream(0, 0.0)
            heard = stream.tokens.__len__
            await follow(endpoint, Prompt([1], 3), stream, lambda: lengths.append(heard()))

    asyncio.run(scenario())
    assert lengths == [1, 3]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            chunked(event([5]), b'data: {"error": {"message": "ew0 is gone"}}\n\n'),
            "ew0 is gone",
        ),
        (chunked(event([5])), "the connection ended before the stream did"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nno", "HTTP 503 Service Unavailable: no"),
        (b"", "HTTP : "),
    ],
)
def test_what_goes_wrong_is_the_streams_error(answer, error):
    stream, _ = ask(answer)
    assert stream.error == error
    assert not stream.done


def test_nobody_there_is_an_error_too():
    load = Load("http://127.0.0.1:1/v1", [Prompt([1], 1)], 1)
    asyncio.run(load.once([0]))
    assert load.all[0].error.startswith("ConnectionRefusedError")


def test_prompts_come_in_turn_until_the_end():
    seen = []

    async def scenario():
        async with gateway(GOOD, seen) as endpoint:
            load = Load(endpoint, [Prompt([i], 3) for i in range(3)], 2)
            running = asyncio.create_task(load.run())
            while len(load.all) < 7:
                await asyncio.sleep(0.001)
            load.end()
            await running
            return load.all

    streams = asyncio.run(scenario())
    assert [s.prompt for s in streams[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert all(s.done for s in streams)
