"""What the command line asks the head of a run; and what is known of a run when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.certificate import run_tls
from tarragon_hpc.cluster.rendezvous import (
    CONFIG,
    TIMELINE,
    is_runtime_dir,
    read_head,
    run_secret,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import AuthError, ClusterError, ConnectFailed, TarragonError, UserError
from tarragon_hpc.observe.stories import tell
from tarragon_hpc.observe.timeline import read_timeline
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_chronicle
from tarragon_hpc.orchestrator.state import GONE, RunPhase
from tarragon_hpc.orchestrator.status import describe
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import Connection, connect
from tarragon_hpc.wire.to_client import Done, Error, StatusReply, ToClient
from tarragon_hpc.wire.to_head import Note, ScaleRun, StatusQuery, StopRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tarragon_hpc.cluster.records import HeadRecord
    from tarragon_hpc.wire.common import Message

_ANSWER_S = 10.0
_EXIT_S = 10.0
_STOP_MARGIN_S = 60.0
_FAILURES = 8


class Head:
    """A connection to the head of a running run, for one question after the other."""

    def __init__(self, run: str, connection: Connection[ToClient]) -> None:
        self._run = run
        self._connection = connection
        self._replies = connection.messages()
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Head({self._run}, {self._connection!r})"

    async def ask(self, question: Message, timeout_s: float = _ANSWER_S) -> ToClient:
        """Its answer. Raises ClusterError if there is none in time."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_s):
                    self._connection.send(question)
                    reply = await anext(self._replies, None)
            except TimeoutError:
                raise ClusterError(f"the head did not answer within {timeout_s:g} s") from None
        if reply is None:
            raise ClusterError("the head went away before it answered")
        return reply

    async def status(self) -> dict[str, Any]:
        """The run as its head describes it. Raises ClusterError."""
        reply = await self.ask(StatusQuery())
        if not isinstance(reply, StatusReply):
            raise self._strange(reply)
        return reply.status

    async def note(
        self, event: str, worker: str | None, detail: Mapping[str, str | int | float]
    ) -> None:
        """Have a line written into the run's timeline. Raises ClusterError."""
        self._accepted(await self.ask(Note(event, worker, dict(detail))), ClusterError)

    async def scale(self, role: str, count: int) -> None:
        """Ask for so many workers of a role; returns when the change is under way.

        Raises UserError with the head's reason if it refuses.
        """
        self._accepted(await self.ask(ScaleRun(role, count)), UserError)

    async def stop(self, drain_s: float) -> None:
        """Have the run ended; returns when no worker is left. Raises ClusterError."""
        reply = await self.ask(StopRun(drain_s), drain_s + _STOP_MARGIN_S)
        self._accepted(reply, ClusterError)

    def _accepted(self, reply: ToClient, refusal: type[TarragonError]) -> None:
        if isinstance(reply, Error):
            raise refusal(reply.message)
        if not isinstance(reply, Done):
            raise self._strange(reply)

    def _strange(self, reply: ToClient) -> ClusterError:
        return ClusterError(f"the head of {self._run} answered {type(reply).__name__}")


@contextlib.asynccontextmanager
async def head_of(run_dir: Path) -> AsyncIterator[Head]:
    """The head of a running run. Raises UserError if it is gone, ClusterError if it is silent."""
    connection = await _reach(run_dir)
    if connection is None:
        found = _from_journal(run_dir)
        why = f": {found['reason']}" if found["reason"] else ""
        raise UserError(f"RUN: {run_dir.name} is not running ({found['state']}{why})")
    async with _talk(run_dir, connection) as head:
        yield head


async def query_status(run_dir: Path) -> dict[str, Any]:
    """The run as its head describes it; from the journal if the head is gone ("state" says so).

    "failures" are the stories of its last failures, from the timeline. Raises ClusterError if the
    head is there but does not answer, or there is nothing to read.
    """
    connection = await _reach(run_dir)
    if connection is None:
        status = _from_journal(run_dir)
    else:
        async with _talk(run_dir, connection) as head:
            status = await head.status()
    return status | {"failures": tell(read_timeline(run_dir / TIMELINE), _FAILURES)}


async def stop_run(run_dir: Path, drain_s: float) -> bool:
    """Stop a run, giving running requests `drain_s` seconds; returns when its head is gone.

    False: it had ended before; whatever a killed head left on this node is removed.
    Raises ClusterError if the head does not answer or refuses.
    """
    record = read_head(run_dir)
    connection = await _reach(run_dir)
    if connection is None:
        _sweep(record)
        return False
    with contextlib.ExitStack() as stack:
        pidfd = _watch(record, stack)
        async with _talk(run_dir, connection) as head:
            await head.stop(drain_s)
        if pidfd is not None:
            await _readable(pidfd, _EXIT_S)
    return True


async def dial(
    run_dir: Path, record: HeadRecord, secret: bytes, timeout_s: float
) -> Connection[ToClient]:
    """A client's connection to a head. Raises AuthError or ConnectFailed."""
    return await connect(
        record.control_host,
        record.control_port,
        secret,
        client_decoder(),
        timeout_s=timeout_s,
        context=run_tls(run_dir),
    )


async def _reach(run_dir: Path) -> Connection[ToClient] | None:
    """A connection to the run's head, or None if it is gone for good."""
    record = read_head(run_dir)
    secret = run_secret(run_dir)
    try:
        return await dial(run_dir, record, secret, _ANSWER_S)
    except AuthError:
        return None  # the port belongs to somebody else by now
    except ConnectFailed as error:
        if isinstance(error.__context__, ConnectionRefusedError | asyncio.IncompleteReadError):
            return None
        where = f"pid {record.pid} on {record.host}"
        raise ClusterError(f"the head of {record.run} ({where}) does not answer: {error}") from None


@contextlib.asynccontextmanager
async def _talk(run_dir: Path, connection: Connection[ToClient]) -> AsyncIterator[Head]:
    try:
        yield Head(run_dir.name, connection)
    finally:
        await connection.close()


def _from_journal(run_dir: Path) -> dict[str, Any]:
    """The status that a head left behind. Its local workers died with it; those of Slurm wait for
    the next one.
    """
    record = read_head(run_dir)
    entries = read_chronicle(run_dir).entries
    if not entries:
        raise ClusterError(f"{run_dir}: its head has left no journal")
    state = replay(entry.event for entry in entries)
    status = describe(state, endpoint=None)
    if state.phase is not RunPhase.ENDED:
        status["state"] = "dead"
        status["reason"] = f"its head (pid {record.pid} on {record.host}) is gone"
        outlive = load_config(run_dir / CONFIG).cluster.backend == "slurm"
        for entry in status["workers"]:
            if state.workers[entry["id"]].phase not in GONE:
                entry["state"] = "awaited" if outlive else "dead"
                entry["reason"] = "the head is gone"
    return status


def _sweep(record: HeadRecord) -> None:
    runtime_dir = Path(record.runtime_dir)
    if record.host == socket.gethostname() and is_runtime_dir(runtime_dir):
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _watch(record: HeadRecord, stack: contextlib.ExitStack) -> int | None:
    """A pidfd of the head's process, if it is another one on this host."""
    if record.host != socket.gethostname() or record.pid == os.getpid():
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        return None
    stack.callback(os.close, pidfd)
    return pidfd


async def _readable(fd: int, timeout_s: float) -> None:
    """Until a descriptor is readable (a pidfd: the process has ended) or the time is over."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(fd, done.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await done.wait()
    finally:
        loop.remove_reader(fd)
