"""Asking a head that is busy, gone, or replaced by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster import client
from tarragon_hpc.cluster.assemble import gateway_url
from tarragon_hpc.cluster.client import head_of, query_status, stop_run
from tarragon_hpc.cluster.records import HeadRecord
from tarragon_hpc.cluster.rendezvous import (
    create_run,
    create_runtime_dir,
    run_secret,
    write_head,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import AuthError, ClusterError, UserError
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.journal import Journal
from tarragon_hpc.wire.codec import head_decoder
from tarragon_hpc.wire.stream import accept
from tarragon_hpc.wire.to_client import Done, Error, StatusReply

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.wire.common import Message

EVENTS = [
    ev.RunCreated(0.0, "r", ["aw0", "ew0"], 2, {"ew0": [0, 1]}, {"ew0": []}),
    ev.WorkerStarted(1.0, "aw0", 1, 10),
    ev.WorkerStarted(1.0, "ew0", 1, 11),
    ev.WorkerExited(2.0, "ew0", 1, "killed by SIGKILL"),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = create_run(load_config({"model": {"path": "m"}}), tmp_path / "run")
    journal = Journal(path / "journal.jsonl")
    journal.append(EVENTS)
    journal.close()
    return path


def publish(run_dir: Path, port: int, runtime_dir: str = "/nowhere") -> None:
    host = socket.gethostname()
    write_head(run_dir, HeadRecord("r", 1, host, "127.0.0.1", port, "http://x/v1", runtime_dir))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.asynccontextmanager
async def head(run_dir: Path, answer: Message | None, secret: bytes | None = None):
    """Answers the first message of every connection with `answer`; None: hangs up."""

    handlers = []

    async def serve(reader, writer) -> None:
        handlers.append(asyncio.current_task())
        with contextlib.suppress(AuthError):
            connection = await accept(reader, writer, secret or run_secret(run_dir), head_decoder())
            await anext(connection.messages(), None)
            if answer is not None:
                connection.send(answer)
            await connection.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    publish(run_dir, server.sockets[0].getsockname()[1])
    async with server:
        try:
            yield
        finally:
            await asyncio.gather(*handlers)


def test_a_dead_heads_journal_speaks_for_it(run_dir: Path):
    publish(run_dir, free_port())
    status = asyncio.run(query_status(run_dir))
    assert (status["state"], status["endpoint"]) == ("dead", None)
    assert "its head (pid 1 on " in status["reason"]
    words = {w["id"]: (w["state"], w["reason"]) for w in status["workers"]}
    assert words == {
        "aw0": ("dead", "the head is gone"),
        "ew0": ("dead", "killed by SIGKILL"),
    }


def test_a_run_that_ended_says_how(run_dir: Path):
    publish(run_dir, free_port())
    journal = Journal(run_dir / "journal.jsonl")
    journal.append([ev.StopBegan(3.0, "ew0 died during the start", True), ev.RunEnded(4.0)])
    journal.close()
    status = asyncio.run(query_status(run_dir))
    assert status["state"] == "failed"
    assert "ew0 died during the start" in status["reason"]


def test_somebody_else_on_the_heads_port_is_not_the_head(run_dir: Path):
    async def scenario() -> None:
        async with head(run_dir, None, secret=bytes(32)):
            assert (await query_status(run_dir))["state"] == "dead"
            assert await stop_run(run_dir, 1.0) is False

    asyncio.run(scenario())


def test_a_head_that_does_not_answer_is_not_taken_for_dead(run_dir: Path, monkeypatch):
    monkeypatch.setattr(client, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        publish(run_dir, stopped.getsockname()[1])
        with pytest.raises(ClusterError, match=r"the head of r \(pid 1 on .*\) does not answer"):
            asyncio.run(query_status(run_dir))
        with pytest.raises(ClusterError, match="does not answer"):
            asyncio.run(stop_run(run_dir, 1.0))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "the head went away before it answered"),
        (Done(), "the head of run answered Done"),
        (Error("no"), "the head of run answered Error"),
    ],
)
def test_strange_answers_to_a_status_query(run_dir: Path, answer, message):
    async def scenario() -> None:
        async with head(run_dir, answer):
            await query_status(run_dir)

    with pytest.raises(ClusterError, match=message):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Error("drain_s: -1.0: must be 0 or more"), "drain_s: -1.0"),
        (StatusReply({}), "answered StatusReply"),
        (None, "went away"),
    ],
)
def test_a_refused_stop_is_an_error(run_dir: Path, answer, message):
    async def scenario() -> None:
        async with head(run_dir, answer):
            await stop_run(run_dir, 1.0)

    with pytest.raises(ClusterError, match=message):
        asyncio.run(scenario())


def test_a_refused_scale_is_the_users_mistake(run_dir: Path):
    async def scenario(answer: Message) -> None:
        async with head(run_dir, answer), head_of(run_dir) as asked:
            await asked.scale("ew", 1)

    asyncio.run(scenario(Done()))
    with pytest.raises(UserError, match="ew=1: its memory holds 3 of 8 experts"):
        asyncio.run(scenario(Error("ew=1: its memory holds 3 of 8 experts")))
    with pytest.raises(ClusterError, match="the head of run answered StatusReply"):
        asyncio.run(scenario(StatusReply({})))


def test_a_head_that_must_be_there_and_is_not(run_dir: Path):
    async def scenario() -> None:
        async with head_of(run_dir):
            pytest.fail("nobody is there")

    publish(run_dir, free_port())
    with pytest.raises(UserError, match=r"RUN: run is not running \(dead: its head"):
        asyncio.run(scenario())


def test_the_status_tells_of_failures_in_the_timeline(run_dir: Path):
    publish(run_dir, free_port())
    assert asyncio.run(query_status(run_dir))["failures"] == []
    line = '{"time":1,"mono":2,"event":"worker lost","worker":"ew0","incarnation":1}\n'
    (run_dir / "timeline.jsonl").write_text(line)
    (failure,) = asyncio.run(query_status(run_dir))["failures"]
    assert (failure["worker"], failure["seconds"]) == ("ew0", {"detected": 0.0})


def test_stopping_a_dead_run_sweeps_its_runtime_directory_but_nothing_else(
    run_dir: Path, tmp_path: Path
):
    runtime_dir = create_runtime_dir()
    publish(run_dir, free_port(), str(runtime_dir))
    assert asyncio.run(stop_run(run_dir, 1.0)) is False
    assert not runtime_dir.exists()
    keep = tmp_path / "tarragon-precious"
    keep.mkdir()
    publish(run_dir, free_port(), str(keep))
    assert asyncio.run(stop_run(run_dir, 1.0)) is False
    assert keep.exists()


def test_a_directory_without_a_head_is_said_so(tmp_path: Path):
    with pytest.raises(ClusterError, match="no head has written"):
        asyncio.run(query_status(tmp_path))


def test_the_endpoint_is_an_address_that_clients_can_use():
    assert gateway_url("127.0.0.1", 80) == "http://127.0.0.1:80/v1"
    assert gateway_url("::1", 80) == "http://[::1]:80/v1"
    for wildcard in ("0.0.0.0", "::"):
        name = gateway_url(wildcard, 80).removeprefix("http://").removesuffix(":80/v1")
        assert socket.getaddrinfo(name, 80)
