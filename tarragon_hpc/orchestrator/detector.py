"""What evidence says about a worker. Pure: the clock and what was heard are arguments.

Fastest evidence first: a process exit or the end of its connection means dead, at once. Missing
heartbeats mean unresponsive (stopped, starved or cut off), which is reported, and taken back when
the worker is heard again.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tarragon_hpc.errors import Claimed
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator.events import WorkerHeard, WorkerSilent
from tarragon_hpc.orchestrator.state import Phase, State
from tarragon_hpc.wire.link import EXIT_BUG, EXIT_FENCED, EXIT_HEAD_LOST

if TYPE_CHECKING:
    from collections.abc import Mapping

# Not while it loads: importing an engine can starve the control thread for seconds, and a worker
# that never gets ready is caught by the start's time limit.
_BEATING = frozenset({Phase.READY, Phase.SERVING})
_KNOWN_EXITS = {
    EXIT_BUG: "a bug in its control thread",
    EXIT_HEAD_LOST: "it lost the head",
    EXIT_FENCED: "it was fenced",
    Claimed.exit_status: "another process had its incarnation",
}


def silence_bound_s(heartbeat_ms: int, misses: int) -> float:
    """How long a worker may be silent before it counts as unresponsive."""
    return heartbeat_ms * misses / 1000


def was_paused(last_look: float, now: float, bound_s: float) -> bool:
    """Whether the head itself stood still for so long that silence proves nothing."""
    return now - last_look > bound_s / 2


def verdicts(
    state: State, heard: Mapping[Incarnation, float], now: float, bound_s: float
) -> list[WorkerSilent | WorkerHeard]:
    """Which workers changed between responsive and unresponsive.

    `heard` has the time of the last message of each connected incarnation.
    """
    found: list[WorkerSilent | WorkerHeard] = []
    for worker in state.workers.values():
        last = heard.get(Incarnation(worker.worker, worker.incarnation))
        if last is None or worker.phase not in _BEATING:
            continue
        silent = now - last
        if worker.responsive and silent > bound_s:
            found.append(WorkerSilent(now, worker.worker, worker.incarnation, round(silent, 3)))
        elif not worker.responsive and silent <= bound_s:
            found.append(WorkerHeard(now, worker.worker, worker.incarnation))
    return found


def describe_exit(returncode: int) -> str:
    """The end of a process in words; `returncode` as in subprocess (negative: killed by signal)."""
    if returncode < 0:
        try:
            return f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"killed by signal {-returncode}"
    known = _KNOWN_EXITS.get(returncode)
    return f"exit status {returncode}" + (f" ({known})" if known else "")
