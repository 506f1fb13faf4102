"""The batch process of a run's job: it starts the head, and the next one if that one dies.

A job ends with its batch process, and its workers with it. So this one does nothing else that could
end it, and imports nothing heavy. It passes the signals of Slurm on to the head, and the head's
exit status to Slurm, unless that was killed or ended by a bug: then there is a next one, in the
same run directory. If another process has taken the run over (a standby head, `tarragon attach`) it
waits until that one is gone.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import FrameType

EXIT_BUG = 70
EXIT_SUPERSEDED = 77
"""Exit statuses of a head: of an error that nobody foresaw, and of one that has found a newer one.
"""

FORWARDED = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MOST = 5
_WINDOW_S = 600.0
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Next:
    """What follows on the end of a head. status: to end with; None: start the next one after
    `pause_s`, which waits for its turn if another head is there.
    """

    reason: str
    status: int | None = None
    pause_s: float = 0.0


def follow(returncode: int, deaths: Sequence[float], now: float, *, told: bool) -> Next:
    """What to do when a head has ended. Pure.

    returncode: as in subprocess. deaths: when heads have died before, this one not included. told:
    it was sent a signal, and they all end it: what is left to do is done by another job.
    """
    if returncode == EXIT_SUPERSEDED:
        return Next("another head has taken the run over; waiting until it is gone")
    how = f"exit status {returncode}"
    if returncode < 0:
        how = f"killed by {_name(-returncode)}"
    if returncode >= 0 and returncode != EXIT_BUG:
        return Next(how, returncode)
    status = returncode if returncode >= 0 else 128 - returncode
    if told:
        return Next(f"{how}, after it was told to end", status)
    recent = [at for at in deaths if now - at <= _WINDOW_S]
    if len(recent) >= _MOST:
        return Next(f"{how}; it is the {len(recent) + 1}th to die in {_WINDOW_S:.0f} s", status)
    pause = min(_LONGEST_PAUSE_S, _PAUSE_S * 2.0 ** (len(recent) - 1)) if recent else 0.0
    return Next(f"{how}; the next one follows", None, pause)


class Supervisor:
    """Runs heads, one after the other. `command` gives the command line of one; `again`: it has to
    wait for its turn.
    """

    def __init__(self, command: Callable[[bool], Sequence[str]]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._told: int | None = None

    def __repr__(self) -> str:
        return f"Supervisor(pid {self._child.pid if self._child else None})"

    def run(self) -> int:
        """To the end of the last head; returns its exit status. Raises ClusterError."""
        deaths: list[float] = []
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            again = False
            while True:
                returncode = self._one(again)
                told = self._told is not None
                verdict = follow(returncode, deaths, time.monotonic(), told=told)
                log.warning("the head has ended: %s", verdict.reason)
                if verdict.status is not None:
                    return verdict.status
                if returncode != EXIT_SUPERSEDED:
                    deaths.append(time.monotonic())
                again = True
                time.sleep(verdict.pause_s)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _one(self, again: bool) -> int:
        try:
            # Of its own session: what is typed at a terminal comes through here, once.
            self._child = subprocess.Popen(self._command(again), start_new_session=True)
        except OSError as error:
            raise ClusterError(f"the head cannot be started: {error}") from None
        if self._told is not None:  # while there was none
            self._child.send_signal(self._told)
        try:
            return self._child.wait()
        finally:
            self._child = None

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._told = number
        if self._child is not None:
            self._child.send_signal(number)


def head_command(run_dir: Path, again: bool) -> list[str]:
    """The command line of a head of a run, a child of this process."""
    command = [sys.executable, "-m", "tarragon_hpc.cli", "head", str(run_dir), "--child"]
    # Its own predecessor is dead for sure, so it need not wait for what others might do.
    return [*command, "--standby", "--patience", "0"] if again else command


def supervise(run_dir: Path) -> int:
    """Have a run headed to its end; returns the exit status. Raises ClusterError."""
    return Supervisor(lambda again: head_command(run_dir, again)).run()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
