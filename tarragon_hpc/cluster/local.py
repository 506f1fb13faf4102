"""Workers as processes on this machine: start, watch, end.

Every process has a session of its own (a Ctrl-C at the terminal reaches only the head) and dies
with the head (`lifeline`). That it ends is noticed by the end of a socket that it holds, how it
ended through a pidfd: no polling, no threads, no signal handler. Whatever it left in its process
group is killed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.ids import Incarnation

_TERM_GRACE_S = 2.0


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    pidfd: int
    line: socket.socket
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class LocalLauncher:
    """Starts local processes from specs and reports, once each and in the event loop, that one
    begins to end (`on_ending`) and that it has ended (`on_exit`, with the return code as in
    subprocess: negative if a signal killed it). Output goes to
    `<run_dir>/logs/<worker>.<incarnation>.log`.
    """

    def __init__(
        self,
        specs: Mapping[str, WorkerSpec],
        run_dir: Path,
        on_ending: Callable[[Incarnation], None],
        on_exit: Callable[[Incarnation, int], None],
    ) -> None:
        self._specs = specs
        self._run_dir = run_dir
        self._on_ending = on_ending
        self._on_exit = on_exit
        self._children: dict[Incarnation, _Child] = {}

    def __repr__(self) -> str:
        return f"LocalLauncher({', '.join(map(str, self._children)) or 'nothing runs'})"

    def start(self, who: Incarnation) -> int:
        """Start a process; returns its pid. Raises ClusterError."""
        spec = self._specs[who.worker]
        ours, theirs = socket.socketpair()
        try:
            with theirs, log_path(self._run_dir, who).open("ab") as log:
                process = subprocess.Popen(
                    spec.command(who, self._run_dir, os.getpid(), theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **spec.env},
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                _kill_group(process.pid)
                process.wait()
                raise
        except OSError as error:
            ours.close()
            raise ClusterError(f"cannot start {who}: {error}") from None
        self._children[who] = _Child(process, pidfd, ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._cut, who)
        loop.add_reader(pidfd, self._reap, who)
        return process.pid

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a process that was asked to leave: SIGTERM after `grace_s`, SIGKILL 2 s later."""
        child = self._children.get(who)
        if child is not None:
            loop = asyncio.get_running_loop()
            child.timers += [
                loop.call_later(grace_s, child.process.terminate),
                loop.call_later(grace_s + _TERM_GRACE_S, self.kill, who),
            ]

    def kill(self, who: Incarnation) -> None:
        """SIGKILL a process and its group; one that is gone is ignored."""
        child = self._children.get(who)
        if child is not None:
            _kill_group(child.process.pid)

    async def close(self) -> None:
        """Kill whatever still runs and wait until it is gone."""
        children = dict(self._children)
        for who in children:
            self.kill(who)
        for child in children.values():
            await child.gone.wait()

    def _cut(self, who: Incarnation) -> None:
        line = self._children[who].line
        asyncio.get_running_loop().remove_reader(line)
        line.close()
        self._on_ending(who)

    def _reap(self, who: Incarnation) -> None:
        if self._children[who].line.fileno() >= 0:
            self._cut(who)
        child = self._children.pop(who)
        # The process is a zombie now, so its pid still names its group and nobody else's.
        _kill_group(child.process.pid)
        returncode = child.process.wait()
        asyncio.get_running_loop().remove_reader(child.pidfd)
        os.close(child.pidfd)
        for timer in child.timers:
            timer.cancel()
        child.gone.set()
        self._on_exit(who, returncode)


def log_path(run_dir: Path, who: Incarnation) -> Path:
    """Where the output of an incarnation goes."""
    return run_dir / "logs" / f"{who}.log"


def log_tail(path: Path, lines: int = 12, max_bytes: int = 8192) -> str:
    """The last lines of a log, for an error message; empty if there is nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
