"""Faults of worker processes of this host, inflicted from outside by signals.

Who is hit is decided from the run's status; a pidfd, opened before the status is asked again, makes
sure that a signal reaches that process or nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tarragon_hpc.errors import UserError

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Mapping

KILL, STOP, CONT, SLOW = FAULTS = ("kill", "stop", "cont", "slow")
CUT, SILENCE = WIRE_FAULTS = ("cut", "silence")
HEAL = "heal"

_RUNNING = ("serving", "degraded", "unavailable")
"""States of a run in which workers may be hit: it has started and is not ending."""
_NO_PROCESS = ("planned", "stopped", "dead")
_PERIOD_S = 0.004
_SHORTEST_S = 0.0005
_SIGNALS = {KILL: signal.SIGKILL, STOP: signal.SIGSTOP, CONT: signal.SIGCONT}


class Target(NamedTuple):
    """A worker's process."""

    worker: str
    incarnation: int
    pid: int

    def __str__(self) -> str:
        return f"{self.worker}.{self.incarnation}"


def check_running(status: Mapping[str, Any]) -> None:
    """Raises UserError unless the run is one whose workers may be hit."""
    if status["state"] not in _RUNNING:
        why = f" ({status['reason']})" if status.get("reason") else ""
        raise UserError(f"RUN: {status['run']} is {status['state']}, not serving{why}")


def find_target(status: Mapping[str, Any], worker: str, host: str) -> Target:
    """The process of a worker, from the run's status. Raises UserError that says why not."""
    check_running(status)
    workers = {entry["id"]: entry for entry in status["workers"]}
    if worker not in workers:
        raise UserError(f"WORKER: {worker!r} is not one of {', '.join(workers)}")
    entry = workers[worker]
    if entry["pid"] is None or entry["state"] in _NO_PROCESS:
        why = f" ({entry['exit'] or entry['reason']})" if entry.get("reason") else ""
        raise UserError(f"WORKER: {worker} is not running: it is {entry['state']}{why}")
    if entry["host"] not in (None, host):
        raise UserError(
            f"WORKER: {worker} runs on {entry['host']}; only those of this host, {host}, can be hit"
        )
    return Target(worker, entry["incarnation"], entry["pid"])


def serving_targets(status: Mapping[str, Any], roles: Collection[str], host: str) -> list[Target]:
    """The workers of these roles that serve on this host, in order."""
    return [
        Target(entry["id"], entry["incarnation"], entry["pid"])
        for entry in status["workers"]
        if entry["role"] in roles
        and entry["state"] == "serving"
        and entry["pid"] is not None
        and entry["host"] == host
    ]


def duty_cycle(factor: float) -> tuple[float, float]:
    """Seconds to run and to be stopped, in turn, so that a process has 1/factor of its time."""
    run_s = max(_SHORTEST_S, _PERIOD_S / factor)
    return run_s, run_s * (factor - 1)


class Victim:
    """A process that was taken aim at. Signals reach it or, once it is gone, nobody."""

    def __init__(self, target: Target) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self.target = target
        self._pidfd = os.pidfd_open(target.pid)

    def __repr__(self) -> str:
        return f"Victim({self.target}, pid {self.target.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)

    def signal(self, fault: str) -> bool:
        """Kill, stop or continue it; False if it is gone."""
        try:
            signal.pidfd_send_signal(self._pidfd, _SIGNALS[fault])
        except ProcessLookupError:
            return False
        return True

    def slow(self, factor: float, seconds: float, give_up: threading.Event) -> None:
        """Let it run for 1/factor of the time, for so long or until `give_up`. Blocks.

        However this ends, the process is left running.
        """
        run_s, stop_s = duty_cycle(factor)
        end = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            stack.callback(self.signal, CONT)
            while time.monotonic() < end and self.signal(STOP):
                if give_up.wait(stop_s) or not self.signal(CONT) or give_up.wait(run_s):
                    return
