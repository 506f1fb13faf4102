"""What `tarragon status` and `tarragon stop` ask the head; and what is known when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.rendezvous import (
    JOURNAL,
    HeadRecord,
    is_runtime_dir,
    read_head,
    run_secret,
)
from tarragon_hpc.errors import AuthError, ClusterError, ConnectFailed
from tarragon_hpc.orchestrator.apply import replay
from tarragon_hpc.orchestrator.journal import read_journal
from tarragon_hpc.orchestrator.state import GONE, RunPhase
from tarragon_hpc.orchestrator.status import describe
from tarragon_hpc.wire.codec import client_decoder
from tarragon_hpc.wire.stream import Connection, connect
from tarragon_hpc.wire.to_client import Done, Error, StatusReply, ToClient
from tarragon_hpc.wire.to_head import StatusQuery, StopRun

if TYPE_CHECKING:
    from tarragon_hpc.wire.common import Message

_ANSWER_S = 10.0
_EXIT_S = 10.0
_STOP_MARGIN_S = 60.0


async def query_status(run_dir: Path) -> dict[str, Any]:
    """The run as its head describes it; from the journal if the head is gone ("state" says so).

    Raises ClusterError if the head is there but does not answer, or there is nothing to read.
    """
    connection = await _reach(run_dir)
    if connection is None:
        return _from_journal(run_dir)
    reply = await _ask(connection, StatusQuery(), _ANSWER_S)
    if not isinstance(reply, StatusReply):
        raise ClusterError(f"the head of {run_dir.name} answered {type(reply).__name__}")
    return reply.status


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
        reply = await _ask(connection, StopRun(drain_s), drain_s + _STOP_MARGIN_S)
        if isinstance(reply, Error):
            raise ClusterError(reply.message)
        if not isinstance(reply, Done):
            raise ClusterError(f"the head of {run_dir.name} answered {type(reply).__name__}")
        if pidfd is not None:
            await _readable(pidfd, _EXIT_S)
    return True


async def _reach(run_dir: Path) -> Connection[ToClient] | None:
    """A connection to the run's head, or None if it is gone for good."""
    record = read_head(run_dir)
    secret = run_secret(run_dir)
    try:
        return await connect(
            record.control_host,
            record.control_port,
            secret,
            client_decoder(),
            timeout_s=_ANSWER_S,
        )
    except AuthError:
        return None  # the port belongs to somebody else by now
    except ConnectFailed as error:
        if isinstance(error.__context__, ConnectionRefusedError | asyncio.IncompleteReadError):
            return None
        where = f"pid {record.pid} on {record.host}"
        raise ClusterError(f"the head of {record.run} ({where}) does not answer: {error}") from None


async def _ask(connection: Connection[ToClient], question: Message, timeout_s: float) -> ToClient:
    try:
        async with asyncio.timeout(timeout_s):
            connection.send(question)
            reply = await anext(connection.messages(), None)
    except TimeoutError:
        raise ClusterError(f"the head did not answer within {timeout_s:g} s") from None
    finally:
        await connection.close()
    if reply is None:
        raise ClusterError("the head went away before it answered")
    return reply


def _from_journal(run_dir: Path) -> dict[str, Any]:
    """The status that a head left behind. Its local workers died with it."""
    record = read_head(run_dir)
    state = replay(entry.event for entry in read_journal(run_dir / JOURNAL))
    status = describe(state, endpoint=None)
    if state.phase is not RunPhase.ENDED:
        status["state"] = "dead"
        status["reason"] = f"its head (pid {record.pid} on {record.host}) is gone"
        for entry in status["workers"]:
            if state.workers[entry["id"]].phase not in GONE:
                entry["state"] = "dead"
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
