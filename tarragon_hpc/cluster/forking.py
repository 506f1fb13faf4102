"""The head's side of the fork servers (`forkserver.py`): one process per role, started when a
worker of the role is first asked for, and again if it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.cluster.forkserver import READY, Order
from tarragon_hpc.cluster.lifeline import adopt_orphans
from tarragon_hpc.cluster.preload import ENVIRONMENT
from tarragon_hpc.cluster.processes import kill_group, start_process
from tarragon_hpc.transport.unix import send_frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.ids import Role

PROGRAM = (sys.executable, "-m", "tarragon_hpc.cluster.forkserver")

# How long a worker may keep the head waiting for its pid: from a server that is ready, and from one
# that still imports.
_FORK_S = 5.0
_IMPORT_S = 120.0
_SEND_S = 0.05
_MOST_DEATHS = 5

log = logging.getLogger(__name__)


def worth_restarting(*, was_ready: bool, deaths: int) -> bool:
    """Whether a fork server that died is to be replaced, the `deaths`-th of its role in this run.

    One that did not get ready would not next time either.
    """
    return was_ready and deaths < _MOST_DEATHS


class ForkServers:
    """Fork servers by role. All methods belong to the event loop's thread."""

    def __init__(self, run_dir: Path, program: Sequence[str] = PROGRAM) -> None:
        self._run_dir = run_dir
        self._program = tuple(program)
        self._servers: dict[Role, _Server] = {}
        self._deaths: dict[Role, int] = {}
        self._given_up: set[Role] = set()
        self._gone: set[asyncio.Future[None]] = set()
        self._adopting = self._closing = False

    def __repr__(self) -> str:
        servers = (f"{r}: {'ready' if s.ready else 'starting'}" for r, s in self._servers.items())
        return f"ForkServers({', '.join(servers)})"

    def order(
        self,
        role: Role,
        name: str,
        arguments: list[str],
        env: Mapping[str, str],
        files: tuple[int, int],
    ) -> float | None:
        """Have a worker forked that gets copies of `files`, its lifeline and its log.

        Returns the seconds within which its pid, or the end, should come over the lifeline (if not,
        call `overdue`); None if there is no fork server and a plain process is to be started.
        """
        server = self._servers.get(role) or self._start(role, env)
        if server is None:
            return None
        changes = {name: os.environ.get(name) for name in ENVIRONMENT} | dict(env)
        order = Order(os.getpid(), name, arguments, changes)
        try:
            send_frame(
                server.sock, msgspec.msgpack.encode(order), files, time.monotonic() + _SEND_S
            )
        except (OSError, UnicodeEncodeError) as error:
            log.warning("the fork server of %s takes no order: %s", role, error)
            return None
        return _FORK_S if server.ready else _IMPORT_S

    def overdue(self, role: Role) -> None:
        """A worker is not there in time: end the server, and with it all orders it has not done."""
        server = self._servers.get(role)
        if server is not None:
            log.warning("the fork server of %s hangs", role)
            server.kill()

    async def close(self) -> None:
        """End all of them; returns when they are gone. Nothing is adopted any more then."""
        self._closing = True
        for server in list(self._servers.values()):
            server.kill()
        while self._gone:
            await asyncio.wait(self._gone)
        if self._adopting:
            self._adopting = False
            adopt_orphans(False)

    def _start(self, role: Role, env: Mapping[str, str]) -> _Server | None:
        if self._closing or role in self._given_up:
            return None
        loop = asyncio.get_running_loop()
        try:
            adopt_orphans()
            self._adopting = True
            server = _Server(self._command(role), self._run_dir / "logs" / f"fork-{role}.log", env)
        except OSError as error:
            log.warning("no fork server of %s: %s", role, error)
            self._given_up.add(role)
            return None
        self._servers[role] = server
        loop.add_reader(server.sock, self._heard, role, server, dict(env))
        gone: asyncio.Future[None] = loop.create_future()
        self._gone.add(gone)
        loop.add_reader(server.pidfd, self._reap, server, gone)
        return server

    def _command(self, role: Role) -> list[str]:
        command = [*self._program, "--role", role, "--run-dir", str(self._run_dir)]
        return [*command, "--parent", str(os.getpid())]

    def _heard(self, role: Role, server: _Server, env: Mapping[str, str]) -> None:
        """It is ready, or its end of the socket is closed: the first thing seen of its death."""
        with contextlib.suppress(ConnectionError):
            if server.sock.recv(len(READY)):
                server.ready = True
                return
        asyncio.get_running_loop().remove_reader(server.sock)
        server.sock.close()
        del self._servers[role]
        if self._closing:
            return
        deaths = self._deaths[role] = self._deaths.get(role, 0) + 1
        if worth_restarting(was_ready=server.ready, deaths=deaths):
            log.warning("the fork server of %s died; another one is started", role)
            self._start(role, env)
        else:
            log.warning("the fork server of %s ended; workers start without it from now on", role)
            self._given_up.add(role)

    def _reap(self, server: _Server, gone: asyncio.Future[None]) -> None:
        asyncio.get_running_loop().remove_reader(server.pidfd)
        os.close(server.pidfd)
        server.process.wait()
        self._gone.discard(gone)
        gone.set_result(None)


class _Server:
    """One process. Raises OSError if it cannot be started.

    It gets the environment of its first worker, so that what reads it during an import finds the
    usual there.
    """

    def __init__(self, command: list[str], log_file: Path, env: Mapping[str, str]) -> None:
        self.ready = False
        self.process, self.pidfd, self.sock = start_process(
            lambda fd: [*command, "--socket", str(fd)], {**env, **ENVIRONMENT}, log_file
        )

    def kill(self) -> None:
        if self.process.returncode is None:  # else its pid may be somebody else's
            kill_group(self.process.pid)
