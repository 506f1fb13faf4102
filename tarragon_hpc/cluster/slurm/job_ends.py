"""What a worker's own job has come to, as far as Slurm says. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tarragon_hpc.orchestrator.detector import describe_exit

if TYPE_CHECKING:
    from tarragon_hpc.cluster.slurm.queue import JobView
    from tarragon_hpc.cluster.slurm.watch import Look

_EXIT = re.compile(r"\bExitCode=([0-9]+):([0-9]+)")
_HELD_FOR_GOOD = re.compile(r"launch[ _]failed[ _]requeued[ _]held", re.IGNORECASE)
_NODE_AT_FAULT = frozenset({"NODE_FAIL", "BOOT_FAIL"})
_ENOUGH = 2
_WORDS = {
    "BOOT_FAIL": "its node could not be booted",
    "CANCELLED": "its job was cancelled",
    "DEADLINE": "its job was over its deadline",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "its job was out of memory",
    "PREEMPTED": "its job was preempted",
    "REVOKED": "its job was revoked",
    "TIMEOUT": "its job was at its time limit",
}


class Stage(StrEnum):
    """Of a job."""

    UNKNOWN = "unknown"
    WAITS = "waits"
    RUNS = "runs"
    ENDING = "ending"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reason: why it waits, or how it ended. blame: nodes not to be used any more. missed: looks in
    a row that did not find it. exit_unknown: the exit status would say more.
    """

    stage: Stage
    reason: str = ""
    expected_start: str = ""
    nodes: tuple[str, ...] = ()
    blame: tuple[str, ...] = ()
    missed: int = 0
    exit_unknown: bool = False


def judge(job: str, look: Look, missed: int, *, connected: bool) -> Verdict:
    """What a look says of a job that has not been found in `missed` looks before this one.

    connected: its worker is. One that is has not ended, whatever the queue does not list; one that
    is not and that two good looks did not find is over: Slurm forgets jobs.
    """
    view = look.views.get(job)
    if view is None:
        if job not in look.missing or connected:
            return Verdict(Stage.UNKNOWN, missed=0 if connected else missed)
        if missed + 1 < _ENOUGH:
            return Verdict(Stage.UNKNOWN, missed=missed + 1)
        return Verdict(Stage.OVER, f"Slurm does not know its job {job} any more")
    if view.over:
        blame = view.nodes if view.state in _NODE_AT_FAULT else ()
        unknown = view.state not in _WORDS
        return Verdict(Stage.OVER, _words(view), "", view.nodes, blame, 0, unknown)
    if view.waits:
        if _HELD_FOR_GOOD.search(view.reason):
            said = f"its job {job} could not be launched: {view.reason}"
            return Verdict(Stage.OVER, said, "", view.nodes, view.nodes)
        reason = view.reason or view.state.lower()
        return Verdict(Stage.WAITS, reason, view.expected_start, view.nodes)
    stage = Stage.ENDING if view.state == "COMPLETING" else Stage.RUNS
    return Verdict(stage, nodes=view.nodes)


def exit_of(shown: str) -> tuple[int, int] | None:
    """(status, signal) that the batch process ended with, from `scontrol show job`; None: it does
    not say.
    """
    match = _EXIT.search(shown)
    return None if match is None else (int(match[1]), int(match[2]))


def exit_words(shown: str) -> str:
    """How the batch process ended, likewise; empty if it does not say."""
    if (found := exit_of(shown)) is None:
        return ""
    status, signal = found
    return describe_exit(-signal if signal else status)


def _words(view: JobView) -> str:
    known = _WORDS.get(view.state)
    if known is None:
        return f"its job {view.job} {view.state.lower()}"
    return f"{known} ({view.job})"
