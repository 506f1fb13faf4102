"""What Slurm says of jobs. Pure: text of `squeue` in, views out.

Only `squeue -o` text is read: JSON changes from release to release, and sacct needs a database that
many sites do not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.slurm.hostlist import expand
from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT = "%i|%T|%L|%S|%N|%r"
"""Id, state, time left, start, nodes, reason. The reason is free text, so it comes last."""

_ID = re.compile(r"([0-9]+)(?:\+([0-9]{1,3}))?")
_LEFT = re.compile(r"(?:([0-9]+)-)?(?:([0-9]+):)?([0-9]+):([0-9]+)")
_NOTHING = frozenset({"", "(null)", "N/A", "None", "n/a", "NONE", "Unknown"})
_WAITING = frozenset(
    {
        "PENDING", "CONFIGURING", "POWER_UP_NODE", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
        "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED",
    }
)  # fmt: skip
_OVER = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobView:
    """One job at one look. state: Slurm's word, such as PENDING. reason: why it waits or ended.

    nodes: names, of all its components, as they are now; parts: of each of them. expected_start: as
    Slurm prints it; empty: unknown, or it has started. left_s: until its time limit; None: unknown;
    infinite: there is none.
    """

    job: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    expected_start: str = ""
    left_s: float | None = None
    parts: tuple[tuple[str, ...], ...] = ()

    @property
    def waits(self) -> bool:
        """It has not started, or is to start again."""
        return self.state in _WAITING

    @property
    def over(self) -> bool:
        """It will never run again. A state that is not known here is none of an end."""
        return self.state in _OVER


def command(user: int) -> list[str]:
    """`squeue` for the jobs of a user (a number): the cheapest question that covers them all."""
    return ["squeue", "--noheader", f"--user={user}", "--states=all", f"--format={FORMAT}"]


def parse(text: str) -> dict[str, JobView]:
    """Views by job id, from what `command` prints. The components of a heterogeneous job become
    one, by its leader's id. Tasks of job arrays and lines of anything else are left out.
    """
    parts: dict[str, list[tuple[int, JobView]]] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 5)]
        match = _ID.fullmatch(fields[0])
        if match is None or len(fields) < 6 or not fields[1]:
            continue
        parts.setdefault(match[1], []).append((int(match[2] or 0), _view(match[1], fields)))
    return {job: _merged(dict(sorted(found, key=_component))) for job, found in parts.items()}


def seconds(text: str) -> float | None:
    """Slurm's forms of the time left (M:SS, H:MM:SS, D-HH:MM:SS, UNLIMITED); None: unknown."""
    if text == "UNLIMITED":
        return float("inf")
    match = _LEFT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def _component(part: tuple[int, JobView]) -> int:
    return part[0]


def _view(job: str, fields: list[str]) -> JobView:
    _, state, left, start, listed, reason = ("" if f in _NOTHING else f for f in fields)
    nodes = _nodes(listed)
    view = JobView(job, state, reason, nodes, "", seconds(left), (nodes,))
    return replace(view, expected_start=start) if view.waits else view


def _nodes(listed: str) -> tuple[str, ...]:
    """A list that cannot be understood names no node: better none than a wrong one."""
    try:
        return expand(listed) if listed else ()
    except ClusterError:
        return ()


def _merged(by_number: dict[int, JobView]) -> JobView:
    """Components start and end together, but for one that is cancelled alone: what the first of
    those says that are not over is the state of the whole.
    """
    parts = list(by_number.values())
    first = next((part for part in parts if not part.over), parts[0])
    left = [part.left_s for part in parts if part.left_s is not None and not part.over]
    nodes = [view.nodes if (view := by_number.get(number)) else ()
             for number in range(max(by_number) + 1)]  # fmt: skip
    return replace(
        first,
        reason=first.reason or _first(part.reason for part in parts),
        nodes=tuple(dict.fromkeys(node for part in nodes for node in part)),
        expected_start=max(part.expected_start for part in parts),
        left_s=min(left, default=first.left_s),
        parts=tuple(nodes),
    )


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")
