"""Child processes of the head: each with a session and a log of its own, most with a line to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# What a killed process has left is waited for so often.
_PAUSE_S = 0.05
_TRIES = 100


class Started(NamedTuple):
    """A process, what tells its end, and the head's end of the socket that it holds."""

    process: subprocess.Popen[bytes]
    pidfd: int
    line: socket.socket


def start_process(
    command: Callable[[int], list[str]], env: Mapping[str, str], log: Path
) -> Started:
    """Run a command, which is told the descriptor of its end of the socket; its output is appended
    to `log`. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs, log.open("ab") as output:
            process = subprocess.Popen(
                command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            kill_group(process.pid)
            process.wait()
            raise
    except OSError:
        ours.close()
        raise
    return Started(process, pidfd, ours)


def start_free(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, pipes: bool
) -> tuple[subprocess.Popen[bytes], int]:
    """Run a command that outlives this process, with a session and just this environment; returns
    what tells its end, too. What it says as an error is appended to `log`, and its output as well,
    unless there are `pipes` to and from it. Raises OSError.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        kill_group(process.pid)
        process.wait()
        raise


def kill_group(pid: int) -> None:
    """SIGKILL the process group of a leader that has not been waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def wait_for_group(pid: int, tries: int = _TRIES) -> None:
    """Wait, in the background, for what is left of a killed group and was adopted by this process
    (`lifeline.adopt_orphans`).
    """
    try:
        while os.waitid(os.P_PGID, pid, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return
    if tries > 1:
        asyncio.get_running_loop().call_later(_PAUSE_S, wait_for_group, pid, tries - 1)
