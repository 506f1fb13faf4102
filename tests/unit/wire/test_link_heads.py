"""A worker's link over more than one head, with real sockets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.wire import seeking
from tarragon_hpc.wire.common import SamplingSpec, Standing
from tarragon_hpc.wire.link import EXIT_FENCED, EXIT_HEAD_LOST, WorkerLink
from tarragon_hpc.wire.seeking import HeadPlace
from tarragon_hpc.wire.to_head import Linked, Ready, Register, TableApplied, Tokens
from tarragon_hpc.wire.to_worker import Abort, Alive, Submit, Table, Welcome
from tests.unit.wire.test_link import Head, context

ME = ("aw0", 7)

# argv: port, then what `seek` finds: a port, or 0 for nothing.
WORKER = """
import sys, threading
from pathlib import Path
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError
from tarragon_hpc.wire.link import WorkerContext, WorkerLink
from tarragon_hpc.wire.seeking import HeadPlace
port, found = int(sys.argv[1]), int(sys.argv[2])
def seek():
    if not found:
        raise ClusterError("no head has written where it listens")
    return HeadPlace(1, "127.0.0.1", found)
config = load_config({"model": {"path": "m"}, "cluster": {"head_lease_s": 1.0}})
context = WorkerContext(
    "ew3", 2, config, Path("."), bytes(32), ("127.0.0.1", port), Path("."), None,
    head_number=1, seek=seek,
)
WorkerLink(context, {}, print, dict).start()
threading.Event().wait(20)
"""


class Places:
    """What the run directory says, as a worker sees it."""

    def __init__(self) -> None:
        self.newest: HeadPlace | None = None
        self.looks = 0

    def seek(self) -> HeadPlace:
        self.looks += 1
        if self.newest is None:
            raise ClusterError("nothing there")
        return self.newest


def make_link(head: Head, places: Places, on_message) -> WorkerLink:
    known = replace(context(head.port), head_number=1, seek=places.seek)
    return WorkerLink(known, {"shm": "x"}, on_message, dict)


def test_a_lost_head_is_followed_by_the_next_with_what_the_worker_has_become():
    got: list[object] = []
    places = Places()

    async def scenario() -> None:
        async with Head() as second:
            async with Head() as first:
                link = make_link(first, places, got.append)
                link.start()
                connection = await asyncio.wait_for(first.connection, 10)
                link.send(Ready(*ME, {"blocks": 1}))
                connection.send(Welcome(3), Table(3, [["ew0"]], []))
                link.send(TableApplied(*ME, 3), Linked(*ME, "ew0", 1, "shm"))
                connection.send(Submit("r", [1], SamplingSpec(max_tokens=5)))
                await first.until(lambda r: any(isinstance(m, Linked) for m in r))
                await until(lambda: len(got) == 3)
            await until(lambda: got[-1] == Abort(["r"], moved=True))
            link.send(Tokens(*ME, []))  # for nobody
            link.send(TableApplied(*ME, 4))
            places.newest = HeadPlace(2, "127.0.0.1", second.port)
            await second.until(lambda r: len(r) > 1)
            register, linked = second.received[:2]
            assert isinstance(register, Register)
            assert register.standing == Standing(
                welcomed=True, detail={"blocks": 1}, table_sent=3, table_applied=4
            )
            assert linked == Linked(*ME, "ew0", 1, "shm")
            assert not any(isinstance(m, Tokens) for m in second.received)
            (await second.connection).send(Welcome(9))
            await until(lambda: got[-1] == Welcome(9))
            await asyncio.to_thread(link.close)
            await asyncio.wait_for(second.over.wait(), 10)

    asyncio.run(scenario())


def test_a_head_that_is_silent_is_left_once_there_is_a_newer_one(monkeypatch):
    monkeypatch.setattr("tarragon_hpc.wire.link.QUIET_S", 0.2)
    places = Places()

    async def scenario() -> None:
        async with Head() as first, Head() as second:
            places.newest = HeadPlace(1, "127.0.0.1", first.port)
            link = make_link(first, places, print)
            link.start()
            connection = await asyncio.wait_for(first.connection, 10)
            for _ in range(12):
                connection.send(Alive())
                await asyncio.sleep(0.05)
            assert places.looks == 0  # it is not looked for while it gives signs of life
            await until(lambda: places.looks > 1)
            assert not second.received
            places.newest = HeadPlace(2, "127.0.0.1", second.port)
            await second.until(lambda r: len(r) > 0)
            assert second.received[0].standing == Standing()
            await asyncio.wait_for(first.over.wait(), 10)
            await asyncio.to_thread(link.close)

    asyncio.run(scenario())


@pytest.mark.parametrize("fenced", [True, False])
def test_a_worker_that_finds_nobody_or_its_own_head_leaves(fenced):
    """Its own head, having given it up, tells it so."""

    async def scenario() -> tuple[int, str]:
        async with Head() as head:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WORKER, str(head.port), str(head.port if fenced else 0),
                stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                first = await asyncio.wait_for(head.connection, 20)
                head.connection = asyncio.get_running_loop().create_future()
                await first.close()
                if fenced:
                    from tarragon_hpc.wire.to_worker import Fence

                    again = await asyncio.wait_for(head.connection, 10)
                    again.send(Fence("given up"))
                _, stderr = await asyncio.wait_for(process.communicate(), 20)
            finally:
                if process.returncode is None:
                    process.kill()
            if not fenced:
                head.connection.set_result(first)
            return process.returncode, stderr.decode()

    status, stderr = asyncio.run(scenario())
    assert status == (EXIT_FENCED if fenced else EXIT_HEAD_LOST)
    if not fenced:
        assert "no other head within 1 s; exiting" in stderr


def test_a_link_that_is_closed_without_a_head_ends():
    places = Places()

    async def scenario() -> None:
        async with Head() as head:
            link = make_link(head, places, print)
            link.start()
            await asyncio.wait_for(head.connection, 10)
        await until(lambda: places.looks > 0)
        await asyncio.wait_for(asyncio.to_thread(link.close), 10)

    asyncio.run(scenario())


def test_a_look_that_takes_too_long_is_given_up():
    block = threading.Event()

    async def scenario() -> None:
        assert await seeking.look(lambda: block.wait(10) and None, 0.05) is None

    threading.Timer(0.3, block.set).start()
    asyncio.run(scenario())


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
