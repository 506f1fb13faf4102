"""A standby head: when it takes a run, and when it does not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import heir
from tarragon_hpc.cluster.heir import await_turn, is_there
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import claim_head, read_head, run_secret, write_head
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.journal import Journal, journal_name
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_client import Done

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.wire.to_head import StandBy

CREATED = ev.RunCreated(0.0, "r", ["aw0", "ew0"], 2, {"ew0": [0, 1]}, {"ew0": []})


@contextlib.asynccontextmanager
async def head(run_dir: Path, *, answers: bool = True):
    """A head that is there, and ends with the block."""
    heard: list[StandBy] = []
    connections = []

    async def serve(reader, writer) -> None:
        connection = await accept(reader, writer, run_secret(run_dir), head_decoder())
        connections.append(connection)
        async for message in connection.messages():
            heard.append(message)
            if answers:
                connection.send(Done())

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    write_head(run_dir, HeadRecord("r", 1, "h", "127.0.0.1", port, "", ""))
    try:
        yield heard
    finally:
        server.close()
        for connection in connections:
            await connection.close()


def journal(run_dir: Path, *events: ev.Event) -> None:
    one = Journal(run_dir / journal_name(1))
    one.append(events)
    one.close()


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(heir, "_PING_S", 0.05)
    monkeypatch.setattr(heir, "_LOOK_S", 0.02)
    monkeypatch.setattr(heir, "_ARRIVAL_S", 0.3)


def test_it_waits_as_long_as_there_is_a_head_and_then_takes_the_run(new_run: Path):
    async def scenario() -> None:
        async with head(new_run) as heard:
            journal(new_run, CREATED)
            waiting = asyncio.create_task(await_turn(new_run, 0.2, 5))
            await until(lambda: len(heard) > 3)
            assert await is_there(new_run, read_head(new_run))
            assert not waiting.done()
        assert await asyncio.wait_for(waiting, 10) == 2
        assert not await is_there(new_run, read_head(new_run))

    asyncio.run(scenario())


def test_a_head_that_does_not_answer_counts_as_gone(new_run: Path):
    async def scenario() -> None:
        async with head(new_run, answers=False):
            assert await asyncio.wait_for(await_turn(new_run, 0, 0.2), 10) == 2

    asyncio.run(scenario())


def test_somebody_else_who_is_faster_is_followed_in_turn(new_run: Path):
    async def scenario() -> None:
        async with head(new_run) as heard:
            waiting = asyncio.create_task(await_turn(new_run, 5, 5))
            await until(lambda: heard)
        async with head(new_run) as heard:  # the second one, within the five seconds
            await until(lambda: heard)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(scenario())


def test_who_claims_and_never_comes_is_not_waited_for_for_ever(new_run: Path):
    claim_head(new_run)
    assert asyncio.run(asyncio.wait_for(await_turn(new_run, 0, 5), 10)) == 2


def test_a_run_that_has_never_had_a_head_is_taken_at_once(new_run: Path):
    assert asyncio.run(asyncio.wait_for(await_turn(new_run, 60, 5), 10)) == 1


@pytest.mark.parametrize(
    "end",
    [
        [ev.StopBegan(1.0, "asked", False), ev.RunEnded(2.0)],
        [ev.StopBegan(1.0, "the time limit is near", False, True), ev.RunEnded(2.0)],
        [ev.StopBegan(1.0, "the time limit is near", False, True)],
        [ev.DrainBegan(1.0, "the time limit is near", 5.0, True)],
    ],
)
def test_a_run_that_ended_or_is_handed_over_is_not_taken(new_run: Path, end):
    claim_head(new_run)
    journal(new_run, CREATED, *end)
    assert asyncio.run(asyncio.wait_for(await_turn(new_run, 0, 5), 10)) is None
