"""The control port under garbage, strangers, impostors and worn-out workers."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from tarragon_hpc.cluster.rendezvous import read_head, run_secret
from tarragon_hpc.errors import AuthError, ConnectFailed
from tarragon_hpc.wire import auth
from tarragon_hpc.wire.codec import client_decoder, encode, worker_decoder
from tarragon_hpc.wire.stream import connect
from tarragon_hpc.wire.to_client import Error
from tarragon_hpc.wire.to_head import Heartbeat, Ready, Register, StatusQuery, StopRun, Tokens
from tarragon_hpc.wire.to_worker import Fence


async def poke(port: int, data: bytes) -> None:
    """Send bytes, hang up after the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
    except OSError:
        pass
    writer.close()


async def join(service, decoder):
    """A connection of somebody who knows the run's secret."""
    record = read_head(service.info.run_dir)
    secret = run_secret(service.info.run_dir)
    return await connect(record.control_host, record.control_port, secret, decoder)


def test_garbage_and_strangers_are_dropped_and_the_run_goes_on(make_config, serving):
    rng = random.Random(0)

    async def scenario() -> None:
        async with serving(make_config()) as service:
            record = read_head(service.info.run_dir)
            strangers = [
                b"",
                b"\x00",
                b"GET / HTTP/1.1\r\n\r\n",
                auth.MAGIC,
                auth.MAGIC + bytes(auth.NONCE),
                auth.MAGIC + bytes(auth.NONCE + auth.PROOF_BYTES),
                *(rng.randbytes(rng.randrange(1, 5000)) for _ in range(20)),
            ]
            for data in strangers:
                await poke(record.control_port, data)
            with pytest.raises((AuthError, ConnectFailed)):
                await connect(record.control_host, record.control_port, bytes(32), client_decoder())

            for data in [
                rng.randbytes(300),
                struct.pack(">I", 0xFFFFFFFF) + b"x",
                struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
                struct.pack(">I", 2000) + b"\x91" * 2000,
                encode(Heartbeat("aw0", 1, {})),
                encode(Fence("you")),
                encode(StatusQuery()) + encode(Tokens("aw0", 1, [])),
            ]:
                friend = await join(service, client_decoder())
                friend._writer.write(data)
                async with asyncio.timeout(10):
                    async for _ in friend.messages():
                        pass
                await friend.close()

            status = await service.status()
            assert status["state"] == "serving"
            assert status["stale_events"] == 0
            assert (await service.complete(2)).status_code == 200
            text = (await service.http.get(service.info.endpoint[:-2] + "metrics")).text
            assert 'tarragon_control_connections_dropped_total{cause="handshake"} 2' in text
            assert 'tarragon_control_connections_dropped_total{cause="garbage"} 5.0' in text
            assert 'tarragon_control_connections_dropped_total{cause="protocol"} 2.0' in text

    asyncio.run(scenario())


IMPOSTORS = [("aw0", 1), ("aw0", 0), ("aw0", 2), ("aw9", 1), ("ew1", 1)]


def test_who_is_not_expected_is_fenced_and_changes_nothing(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            before = (await service.status())["workers"]
            for worker, incarnation in IMPOSTORS:
                impostor = await join(service, worker_decoder())
                impostor.send(Register(worker, incarnation, 1, "elsewhere", {}))
                impostor.send(Ready(worker, incarnation, {"evil": 1}))
                async with asyncio.timeout(10):
                    got = [message async for message in impostor.messages()]
                await impostor.close()
                assert [type(m) for m in got] == [Fence]
            status = await service.status()
            assert status["stale_events"] == len(IMPOSTORS)
            same = ("id", "state", "incarnation", "pid", "host", "detail")
            assert [[w[k] for k in same] for w in status["workers"]] == [
                [w[k] for k in same] for w in before
            ]
            assert (await service.complete(2)).status_code == 200

    asyncio.run(scenario())


def test_a_stop_with_an_impossible_time_is_refused(make_config, serving):
    async def scenario() -> None:
        async with serving(make_config()) as service:
            client = await join(service, client_decoder())
            messages = client.messages()
            for drain_s in (-1.0, float("nan"), float("inf")):
                client.send(StopRun(drain_s))
                reply = await asyncio.wait_for(anext(messages), 10)
                assert isinstance(reply, Error)
                assert "drain_s" in reply.message
            await client.close()
            assert (await service.status())["state"] == "serving"
            assert not service.stop.is_set()

    asyncio.run(scenario())
