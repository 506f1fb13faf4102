"""Workers as processes on this machine: start, watch, end.

Every process has a session of its own (a Ctrl-C at the terminal reaches only the head) and dies
with the head (`lifeline`). It is forked by its role's fork server where there is one (`forking`),
and else, or if words of `cluster.prefix` precede its command, started as a program. That it ends is
noticed by the end of a socket that it holds, how it ended through a pidfd: no polling, no threads,
no signal handler. Whatever it left in its process group is killed with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.forkserver import PID_BYTES
from tarragon_hpc.cluster.processes import kill_group, start_process, wait_for_group
from tarragon_hpc.cluster.spec import ENTRY
from tarragon_hpc.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tarragon_hpc.cluster.forking import ForkServers
    from tarragon_hpc.cluster.spec import WorkerSpec
    from tarragon_hpc.ids import Incarnation

_TERM_GRACE_S = 2.0
_NOT_FOUND = 127  # the exit status of a program that could not be started, as in a shell

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Child:
    """`pid` None: ordered from a fork server, which has not delivered yet. `process`: if it was
    started as a program. `doomed`: it is to be killed as soon as there is something to kill.
    """

    line: socket.socket
    pid: int | None = None
    pidfd: int = -1
    process: subprocess.Popen[bytes] | None = None
    doomed: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    delivery: asyncio.TimerHandle | None = None


class LocalLauncher:
    """Starts local processes from specs and reports, once each and in the event loop, that one
    begins to end (`on_ending`) and that it has ended (`on_exit`, with the return code as in
    subprocess: negative if a signal killed it). Output goes to
    `<run_dir>/logs/<worker>.<incarnation>.log`. `forks`: where workers come from that have the
    usual program and no prefix; None: all of them are started as programs.
    """

    def __init__(
        self,
        specs: Mapping[str, WorkerSpec],
        run_dir: Path,
        on_ending: Callable[[Incarnation], None],
        on_exit: Callable[[Incarnation, int], None],
        forks: ForkServers | None = None,
    ) -> None:
        self._specs = specs
        self._run_dir = run_dir
        self._on_ending = on_ending
        self._on_exit = on_exit
        self._forks = forks
        self._children: dict[Incarnation, _Child] = {}

    def __repr__(self) -> str:
        return f"LocalLauncher({', '.join(map(str, self._children)) or 'nothing runs'})"

    def start(self, who: Incarnation) -> int | None:
        """Start a process; returns its pid, None if it is being forked. Raises ClusterError."""
        try:
            child = self._order(who) or self._spawn(who)
        except OSError as error:
            raise ClusterError(f"cannot start {who}: {error}") from None
        self._children[who] = child
        self._watch(who, child)
        return child.pid

    def stop(self, who: Incarnation, grace_s: float) -> None:
        """End a process that was asked to leave: SIGTERM after `grace_s`, SIGKILL 2 s later."""
        child = self._children.get(who)
        if child is not None:
            loop = asyncio.get_running_loop()
            child.timers += [
                loop.call_later(grace_s, self._terminate, who),
                loop.call_later(grace_s + _TERM_GRACE_S, self.kill, who),
            ]

    def kill(self, who: Incarnation) -> None:
        """SIGKILL a process and its group; one that is gone is ignored."""
        child = self._children.get(who)
        if child is not None:
            child.doomed = True
            if child.pid is not None:
                kill_group(child.pid)

    async def close(self) -> None:
        """Kill whatever still runs and wait until it is gone."""
        children = dict(self._children)
        for who in children:
            self.kill(who)
        if self._forks is not None:
            await self._forks.close()
        for child in children.values():
            await child.gone.wait()

    def _order(self, who: Incarnation) -> _Child | None:
        """A child that a fork server is to deliver; None if there is none. Raises OSError."""
        spec = self._specs[who.worker]
        if self._forks is None or spec.program != ENTRY or spec.prefix:
            return None
        ours, theirs = socket.socketpair()
        with theirs, log_path(self._run_dir, who).open("ab") as output:
            within_s = self._forks.order(
                spec.role,
                str(who),
                spec.arguments(who, self._run_dir, os.getpid()),
                spec.env,
                (theirs.fileno(), output.fileno()),
            )
        if within_s is None:
            ours.close()
            return None
        late = asyncio.get_running_loop().call_later(within_s, self._forks.overdue, spec.role)
        return _Child(ours, delivery=late)

    def _spawn(self, who: Incarnation) -> _Child:
        """A child started as a program. Raises OSError."""
        spec = self._specs[who.worker]
        process, pidfd, line = start_process(
            lambda lifeline: spec.command(who, self._run_dir, os.getpid(), lifeline),
            spec.env,
            log_path(self._run_dir, who),
        )
        return _Child(line, process.pid, pidfd, process)

    def _watch(self, who: Incarnation, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        if child.pid is None:
            loop.add_reader(child.line, self._delivered, who)
            return
        loop.add_reader(child.line, self._cut, who)
        loop.add_reader(child.pidfd, self._reap, who)

    def _delivered(self, who: Incarnation) -> None:
        """The pid of a forked child, or the end of its lifeline: nobody will ever send it."""
        child = self._children[who]
        if child.delivery is not None:
            child.delivery.cancel()
        asyncio.get_running_loop().remove_reader(child.line)
        if data := child.line.recv(PID_BYTES):
            self._adopt(who, child, int.from_bytes(data, "little"))
            return
        child.line.close()
        if child.doomed:
            self._never_was(who, child, -signal.SIGKILL)
            return
        log.warning("%s could not be forked and is started as a program", who)
        try:
            spawned = self._spawn(who)
        except OSError as error:
            log.error("cannot start %s: %s", who, error)
            self._never_was(who, child, _NOT_FOUND)
            return
        child.line, child.process = spawned.line, spawned.process
        child.pid, child.pidfd = spawned.pid, spawned.pidfd
        self._watch(who, child)

    def _adopt(self, who: Incarnation, child: _Child, pid: int) -> None:
        try:
            child.pidfd = os.pidfd_open(pid)
        except OSError as error:  # out of descriptors: it cannot be watched, so it must not live
            log.error("%s cannot be watched: %s", who, error)
            kill_group(pid)
            os.waitpid(pid, 0)
            child.line.close()
            self._never_was(who, child, -signal.SIGKILL)
            return
        child.pid = pid
        self._watch(who, child)
        if child.doomed:
            kill_group(pid)

    def _never_was(self, who: Incarnation, child: _Child, returncode: int) -> None:
        self._on_ending(who)
        self._finish(who, child, returncode)

    def _terminate(self, who: Incarnation) -> None:
        child = self._children[who]
        if child.pid is None:
            child.doomed = True
        else:
            signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)

    def _cut(self, who: Incarnation) -> None:
        line = self._children[who].line
        asyncio.get_running_loop().remove_reader(line)
        line.close()
        self._on_ending(who)

    def _reap(self, who: Incarnation) -> None:
        child = self._children[who]
        if child.line.fileno() >= 0:
            self._cut(who)
        assert child.pid is not None
        # The process is a zombie now, so its pid still names its group and nobody else's.
        kill_group(child.pid)
        if child.process is not None:
            returncode = child.process.wait()
        else:
            returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        wait_for_group(child.pid)
        asyncio.get_running_loop().remove_reader(child.pidfd)
        os.close(child.pidfd)
        self._finish(who, child, returncode)

    def _finish(self, who: Incarnation, child: _Child, returncode: int) -> None:
        del self._children[who]
        for timer in child.timers:
            timer.cancel()
        child.gone.set()
        self._on_exit(who, returncode)


def check_prefixes(prefixes: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError unless the programs that precede workers' commands are on this machine."""
    for key, words in prefixes.items():
        if shutil.which(words[0]) is None:
            raise ConfigError(
                f"cluster.prefix.{key}", f"{words[0]!r}: no such program; give its path"
            )


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


def quoted_tail(path: Path) -> str:
    """The last lines of a log, to follow a line of text; empty if there is nothing."""
    return "".join(f"\n  | {line}" for line in log_tail(path).splitlines())
