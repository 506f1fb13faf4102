"""The control server's rules, with recording ends instead of a run."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tarragon_hpc.cluster import control
from tarragon_hpc.cluster.control import ControlServer
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire.codec import client_decoder, worker_decoder
from tarragon_hpc.wire.common import TokenDelta
from tarragon_hpc.wire.stream import connect
from tarragon_hpc.wire.to_client import Done, StatusReply
from tarragon_hpc.wire.to_head import (
    Failed,
    Heartbeat,
    Ready,
    Refused,
    Register,
    StatusQuery,
    StopRun,
    Tokens,
)

SECRET = bytes(range(32))


class Recorder:
    """Everybody the server tells something."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.stopped = asyncio.Event()

    def admit(self, link: Any, register: Register) -> Incarnation:
        self.said.append(register)
        return Incarnation(register.worker, register.incarnation)

    def hear(self, who: Incarnation) -> None:
        self.said.append(("heard", who))

    def lost(self, who: Incarnation, reason: str) -> None:
        self.said.append(("lost", who, reason))

    def receive(self, message: Any) -> None:
        self.said.append(message)

    on_tokens = on_refused = on_failed = receive

    def status(self) -> dict[str, Any]:
        return {"state": "fine"}

    def scale(self, role: str, count: int) -> str | None:
        self.said.append(("scale", role, count))
        return None if role == "ew" else f"{role}: no such role"

    async def stop(self, drain_s: float) -> None:
        self.said.append(("stop", drain_s))
        await self.stopped.wait()

    def dropped(self, cause: str) -> None:
        self.said.append(("dropped", cause))


@contextlib.asynccontextmanager
async def server():
    recorder = Recorder()
    server = ControlServer(
        SECRET,
        workers=recorder,
        sequences=recorder,
        status=recorder.status,
        stop=recorder.stop,
        note=recorder.receive,
        dropped=recorder.dropped,
        saved=recorder.receive,
    )
    port = await server.start("127.0.0.1")
    try:
        yield recorder, server, port
    finally:
        await server.close()


async def until_closed(connection) -> None:
    async with asyncio.timeout(10):
        async for _ in connection.messages():
            pass
    await connection.close()


def test_a_workers_messages_go_where_they_belong_in_order():
    me = ("aw0", 3)
    sent = [
        Ready(*me, {}),
        Heartbeat(*me, {"x": 1.0}),
        Tokens(*me, [TokenDelta("r", 0, [1])]),
        Refused(*me, "r", "no"),
        Failed(*me, ["r"], "ew0 is gone"),
    ]

    async def scenario() -> None:
        async with server() as (recorder, _, port):
            worker = await connect("127.0.0.1", port, SECRET, worker_decoder())
            register = Register(*me, 1, "h", {})
            worker.send(register, *sent)
            await worker.close()
            async with asyncio.timeout(10):
                while len(recorder.said) < 2 + 2 * len(sent):
                    await asyncio.sleep(0)
        heard = ("heard", Incarnation(*me))
        assert [m for m in recorder.said if m != heard] == [
            register,
            *sent,
            ("lost", Incarnation(*me), "its connection was closed"),
        ]
        assert recorder.said.count(heard) == len(sent)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "message",
    [Ready("aw0", 2, {}), Tokens("aw1", 3, []), Register("aw0", 3, 1, "h", {}), StatusQuery()],
)
def test_a_worker_that_says_what_it_must_not_is_cut_off_and_lost(message):
    async def scenario() -> None:
        async with server() as (recorder, _, port):
            worker = await connect("127.0.0.1", port, SECRET, worker_decoder())
            worker.send(Register("aw0", 3, 1, "h", {}), message)
            await until_closed(worker)
        reason = f"it sent {type(message).__name__} where it must not"
        assert recorder.said[1:] == [
            ("dropped", "protocol"),
            ("lost", Incarnation("aw0", 3), reason),
        ]

    asyncio.run(scenario())


def test_a_worker_that_sends_garbage_is_lost_for_that_reason():
    async def scenario() -> None:
        async with server() as (recorder, _, port):
            worker = await connect("127.0.0.1", port, SECRET, worker_decoder())
            worker.send(Register("aw0", 3, 1, "h", {}))
            worker._writer.write(b"\xff" * 40)
            await until_closed(worker)
        (_, who, reason), dropped = recorder.said[1:]
        assert who == Incarnation("aw0", 3)
        assert reason.startswith("it sent garbage: frame of 4294967295 bytes")
        assert dropped == ("dropped", "garbage")

    asyncio.run(scenario())


def test_clients_are_answered_and_a_stop_when_it_is_done():
    async def scenario() -> None:
        async with server() as (recorder, _, port):
            client = await connect("127.0.0.1", port, SECRET, client_decoder())
            messages = client.messages()
            for _ in range(2):
                client.send(StatusQuery())
                assert await anext(messages) == StatusReply({"state": "fine"})
            client.send(StopRun(2.5))
            answer = asyncio.ensure_future(anext(messages))
            other = await connect("127.0.0.1", port, SECRET, client_decoder())
            other.send(StatusQuery())
            await anext(other.messages())
            assert recorder.said == [("stop", 2.5)]
            assert not answer.done()
            recorder.stopped.set()
            assert await answer == Done()
            await client.close()
            await other.close()

    asyncio.run(scenario())


def test_strangers_have_little_room_and_little_time(monkeypatch):
    monkeypatch.setattr(control, "_MAX_STRANGERS", 2)
    monkeypatch.setattr("tarragon_hpc.wire.stream.HANDSHAKE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(control, "_FIRST_MESSAGE_S", 0.05)

    async def scenario() -> None:
        async with server() as (recorder, control_server, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert await silent[0][0].read() == b""  # the oldest makes room
            assert recorder.said == [("dropped", "crowded")]
            assert "2 connections" in repr(control_server)
            for reader, _ in silent[1:]:
                assert await asyncio.wait_for(reader.read(), 10) == b""
            assert recorder.said[1:] == [("dropped", "handshake")] * 2
            mute = await connect("127.0.0.1", port, SECRET, client_decoder())
            await until_closed(mute)
            assert recorder.said[3:] == [("dropped", "silent")]
            for _, writer in silent:
                writer.close()

    asyncio.run(scenario())


def test_a_bug_in_a_handler_ends_one_connection_only(caplog):
    async def scenario() -> None:
        async with server() as (recorder, _, port):
            recorder.admit = lambda link, register: 1 / 0
            worker = await connect("127.0.0.1", port, SECRET, worker_decoder())
            worker.send(Register("aw0", 3, 1, "h", {}))
            await until_closed(worker)
            client = await connect("127.0.0.1", port, SECRET, client_decoder())
            client.send(StatusQuery())
            assert await anext(client.messages()) == StatusReply({"state": "fine"})
            await client.close()
            assert ("dropped", "bug") in recorder.said

    asyncio.run(scenario())
    assert "ZeroDivisionError" in caplog.text


def test_closing_loses_the_workers_and_frees_the_port():
    async def scenario() -> None:
        async with server() as (recorder, control_server, port):
            worker = await connect("127.0.0.1", port, SECRET, worker_decoder())
            worker.send(Register("aw0", 3, 1, "h", {}), Ready("aw0", 3, {}))
            async with asyncio.timeout(10):
                while len(recorder.said) < 3:
                    await asyncio.sleep(0)
            stranger, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(10):
                while "2 connections" not in repr(control_server):
                    await asyncio.sleep(0)
            await control_server.close()
            assert await asyncio.wait_for(stranger.read(), 10) == b""
            writer.close()
            assert recorder.said[-1] == ("lost", Incarnation("aw0", 3), "the head is closing")
            await until_closed(worker)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(scenario())
