"""A standby head: it waits until a run has no head, and is the next one.

It is told of the head's end by the end of a connection to it. Somebody else may follow as well (the
job's batch process starts a new head, there may be more standbys), so it gives them some time, and
takes the run by a claim that only one of them can get: as the successor of the head that is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.client import dial
from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.cluster.inheritance import last_state, passes_on
from tarragon_hpc.cluster.rendezvous import (
    claim_head,
    list_run,
    newest_claim,
    newest_head,
    run_secret,
)
from tarragon_hpc.errors import ClusterError, TarragonError
from tarragon_hpc.wire.to_head import StandBy

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.cluster.records import HeadRecord
    from tarragon_hpc.wire.stream import Connection
    from tarragon_hpc.wire.to_client import ToClient

_CONNECT_S = 5.0
_PING_S = 2.0
_LOOK_S = 0.25
# Between the claim of a head and its record: it reads journals and opens ports.
_ARRIVAL_S = 15.0

log = logging.getLogger(__name__)


async def await_turn(run_dir: Path, patience_s: float, silence_s: float) -> int | None:
    """Wait until the run has no head, and claim it; returns the number of that claim. None: the run
    has ended, or was handed over to another job.

    patience_s: how long somebody else may take to follow a head that is gone. silence_s: how long a
    head may say nothing before it counts as gone. Raises TarragonError.
    """
    run, secret = Directory(run_dir), run_secret(run_dir)
    while True:
        names = list_run(run)
        claimed = newest_claim(names)
        try:
            record = newest_head(run, names, lambda: secret)
        except ClusterError:
            record = None
        if record is not None and record.incarnation == claimed:
            reason = await _watch(run_dir, record, secret, silence_s)
            limit_s = patience_s
        else:
            reason = "has never said where it listens"
            limit_s = max(patience_s, _ARRIVAL_S) if claimed else 0.0
        state = last_state(run_dir)
        if state is not None and passes_on(state):
            log.info("the run is %s: %s", state.phase, state.reason)
            return None
        if claimed:
            log.warning("head %d %s; waiting %g s for another one", claimed, reason, limit_s)
        if await _changes(run, names, limit_s):
            continue
        number = claim_head(run_dir, after=claimed)
        if number is not None:
            log.warning("taking the run over as head %d", number)
            return number


async def is_there(run_dir: Path, record: HeadRecord) -> bool:
    """Whether a head answers."""
    try:
        connection = await dial(run_dir, record, run_secret(run_dir), _CONNECT_S)
    except TarragonError:
        return False
    await connection.close()
    return True


async def _changes(run: Directory, before: list[str], limit_s: float) -> bool:
    """Wait for another claim or record; whether there was one in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while True:
        names = list_run(run)
        heads = {name for name in names if name.startswith("head.")}
        if heads - set(before):
            return True
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(min(_LOOK_S, deadline - loop.time()))


async def _watch(run_dir: Path, record: HeadRecord, secret: bytes, silence_s: float) -> str:
    """Be connected to a head until it is gone; returns how that was seen."""
    loop = asyncio.get_running_loop()
    heard = loop.time()
    while True:
        try:
            connection = await dial(run_dir, record, secret, _CONNECT_S)
        except TarragonError as error:
            refused = isinstance(error.__context__, ConnectionRefusedError)
            # A port that nobody listens on belongs to nobody; one that does not answer may be slow.
            if refused or loop.time() - heard > silence_s:
                return f"cannot be reached: {error}"
            await asyncio.sleep(_PING_S)
            continue
        try:
            return await _listen(connection, silence_s)
        finally:
            await connection.close()


async def _listen(connection: Connection[ToClient], silence_s: float) -> str:
    messages = connection.messages()
    me = StandBy(os.getpid(), socket.gethostname())
    answer = asyncio.ensure_future(anext(messages, None))
    try:
        while True:
            connection.send(me)
            if not (await asyncio.wait([answer], timeout=silence_s))[0]:
                return f"has not answered for {silence_s:g} s"
            if answer.result() is None:
                return "is gone: its connection was closed"
            answer = asyncio.ensure_future(anext(messages, None))
            if (await asyncio.wait([answer], timeout=_PING_S))[0]:
                return "is gone: its connection was closed"
    except TarragonError as error:
        return f"sent garbage: {error}"
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
