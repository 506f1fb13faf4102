"""The worker's control link against a real head-side socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

from tarragon_hpc.config import load_config
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.link import (
    EXIT_BUG,
    EXIT_FENCED,
    EXIT_HEAD_LOST,
    WorkerContext,
    WorkerLink,
)
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_head import Heartbeat, Ready, Register, Stopping
from tarragon_hpc.wire.to_worker import Abort, Fence, Welcome

SECRET = bytes(32)

WORKER = """
import sys, threading
from pathlib import Path
from tarragon_hpc.config import load_config
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
def on_message(message):
    if type(message).__name__ == "Abort":
        raise ValueError("a bug")
    print(type(message).__name__, flush=True)
config = load_config({"model": {"path": "m"}})
context = WorkerContext(
    "ew3", 2, config, Path("."), bytes(32), ("127.0.0.1", int(sys.argv[1])), Path("."), None
)
WorkerLink(context, {}, on_message, dict).start()
threading.Event().wait(20)
"""


def context(port: int, heartbeat_ms: int = 10) -> WorkerContext:
    config = load_config({"model": {"path": "m"}, "detection": {"heartbeat_ms": heartbeat_ms}})
    return WorkerContext(
        "aw0", 7, config, Path("run"), SECRET, ("127.0.0.1", port), Path("rt"), (0,)
    )


class Head:
    """One accepted connection: what it sent, and a way to answer."""

    def __init__(self) -> None:
        self.received: list[object] = []
        self.connection = asyncio.Future()
        self.over = asyncio.Event()
        self.grown = asyncio.Condition()

    async def __aenter__(self) -> Head:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        if self.connection.done():
            await self.connection.result().close()

    async def _serve(self, reader, writer) -> None:
        connection = await accept(reader, writer, SECRET, head_decoder())
        self.connection.set_result(connection)
        async for message in connection.messages():
            async with self.grown:
                self.received.append(message)
                self.grown.notify_all()
        self.over.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(10), self.grown:
            await self.grown.wait_for(lambda: condition(self.received))


def test_registers_first_then_beats_and_delivers_both_ways():
    got: list[tuple[object, str]] = []
    arrived = threading.Event()

    def on_message(message: object) -> None:
        got.append((message, threading.current_thread().name))
        arrived.set()

    async def scenario() -> None:
        async with Head() as head:
            link = WorkerLink(context(head.port), {"shm": "x"}, on_message, lambda: {"rows": 3.0})
            link.send(Ready("aw0", 7, {"early": 1}))  # before start: kept, in order
            link.start()
            await head.until(lambda r: any(isinstance(m, Heartbeat) for m in r))
            assert isinstance(head.received[0], Register)
            register = head.received[0]
            assert (register.worker, register.incarnation) == ("aw0", 7)
            assert register.pid == os.getpid()
            assert register.address == {"shm": "x"}
            assert head.received[1] == Ready("aw0", 7, {"early": 1})
            beats = [m for m in head.received if isinstance(m, Heartbeat)]
            assert beats[0].stats == {"rows": 3.0}

            (await head.connection).send(Welcome(4, [1, 2]))
            assert await asyncio.to_thread(arrived.wait, 10)
            assert got == [(Welcome(4, [1, 2]), "control")]

            link.send(Stopping("aw0", 7, "done"))
            await asyncio.to_thread(link.close)
            await asyncio.wait_for(head.over.wait(), 10)
            assert head.received[-1] == Stopping("aw0", 7, "done")
            link.close()
            link.send(Stopping("aw0", 7, "too late"))
            assert "closed" in repr(link)

    asyncio.run(scenario())


def test_messages_of_many_threads_keep_each_threads_order():
    async def scenario() -> None:
        async with Head() as head:
            link = WorkerLink(context(head.port, 10_000), {}, print, dict)
            link.start()

            def speak(who: int) -> None:
                for i in range(200):
                    link.send(Ready("aw0", 7, {"who": who, "i": i}))

            threads = [threading.Thread(target=speak, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            await head.until(lambda r: sum(isinstance(m, Ready) for m in r) == 800)
            for who in range(4):
                said = [
                    m.detail["i"]
                    for m in head.received
                    if isinstance(m, Ready) and m.detail["who"] == who
                ]
                assert said == list(range(200))
            await asyncio.to_thread(link.close)

    asyncio.run(scenario())


def exit_status_after(act) -> tuple[int, str]:
    """Start a worker process, do `act(connection)` once it has registered; (status, stderr)."""

    async def scenario() -> tuple[int, str]:
        async with Head() as head:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WORKER, str(head.port), stderr=subprocess.PIPE
            )
            try:
                await head.until(lambda r: len(r) > 0)
                await act(await head.connection)
                _, stderr = await asyncio.wait_for(process.communicate(), 20)
            finally:
                if process.returncode is None:
                    process.kill()
            return process.returncode, stderr.decode()

    return asyncio.run(scenario())


def test_a_fenced_worker_exits_at_once():
    async def fence(connection) -> None:
        connection.send(Fence("given up"))

    assert exit_status_after(fence)[0] == EXIT_FENCED


def test_a_worker_without_head_exits_and_says_so():
    async def hang_up(connection) -> None:
        await connection.close()

    status, stderr = exit_status_after(hang_up)
    assert status == EXIT_HEAD_LOST
    assert "lost the head" in stderr


def test_an_exception_in_the_control_thread_ends_the_worker():
    async def provoke(connection) -> None:
        connection.send(Abort(["r1"]))

    status, stderr = exit_status_after(provoke)
    assert status == EXIT_BUG
    assert "ValueError: a bug" in stderr


def test_a_worker_that_cannot_reach_the_head_exits():
    process = subprocess.run(
        [sys.executable, "-c", WORKER, "1"], capture_output=True, text=True, timeout=30
    )
    assert process.returncode == EXIT_HEAD_LOST
    assert "cannot join the run" in process.stderr


def test_the_secret_is_not_shown():
    assert "secret" not in repr(context(1))
