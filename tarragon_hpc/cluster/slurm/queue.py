"""What Slurm says of jobs. Pure: text of `squeue` in, views out.

Only `squeue -o` text is read: JSON changes from release to release, and sacct needs a database that
many sites do not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT = "%i|%T|%L|%S|%N|%r"
"""Id, state, time left, start, nodes, reason. The reason is free text, so it comes last."""

_ID = re.compile(r"([0-9]+)(?:\+([0-9]+))?")
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

    nodes: names, of all its components. expected_start: as Slurm prints it; empty: unknown, or it
    has started. left_s: until its time limit; None: unknown; infinite: there is none.
    """

    job: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    expected_start: str = ""
    left_s: float | None = None

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
    return {job: _merged([view for _, view in sorted(found, key=_component)])
            for job, found in parts.items()}  # fmt: skip


def seconds(text: str) -> float | None:
    """Slurm's forms of the time left (M:SS, H:MM:SS, D-HH:MM:SS, UNLIMITED); None: unknown."""
    if text == "UNLIMITED":
        return float("inf")
    match = _LEFT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def expand(nodes: str) -> tuple[str, ...]:
    """The names in a node list such as `n[0-2,07],login`; as it is, if it makes no sense."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodes):
        names += _expanded(part)
    return tuple(dict.fromkeys(names))


def _expanded(part: str) -> list[str]:
    match = re.search(r"\[([0-9,-]+)\]", part)
    if match is None:
        return [part]
    names: list[str] = []
    for item in match[1].split(","):
        first, dash, last = item.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return [part]
        for number in range(int(first), int(last or first) + 1):
            middle = f"{number:0{len(first)}d}"
            names += _expanded(f"{part[: match.start()]}{middle}{part[match.end() :]}")
    return names


def _component(part: tuple[int, JobView]) -> int:
    return part[0]


def _view(job: str, fields: list[str]) -> JobView:
    _, state, left, start, nodes, reason = ("" if f in _NOTHING else f for f in fields)
    view = JobView(job, state, reason, expand(nodes), "", seconds(left))
    return replace(view, expected_start=start) if view.waits else view


def _merged(parts: list[JobView]) -> JobView:
    """Components start and end together, but for one that is cancelled alone: what the first of
    those says that are not over is the state of the whole.
    """
    first = next((part for part in parts if not part.over), parts[0])
    left = [part.left_s for part in parts if part.left_s is not None and not part.over]
    return replace(
        first,
        reason=first.reason or _first(part.reason for part in parts),
        nodes=tuple(dict.fromkeys(node for part in parts for node in part.nodes)),
        expected_start=max(part.expected_start for part in parts),
        left_s=min(left, default=first.left_s),
    )


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")
