"""What Slurm says of itself and its partitions. Pure: text of `sinfo` and `scontrol` in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SINFO = ["sinfo", "--noheader", "--format=%P|%a|%l|%D|%t|%c|%m|%G"]
CONFIG = ["scontrol", "show", "config"]

_GPU = re.compile(r"gpu(?::(?P<kind>[A-Za-z][^:(,]*))?:(?P<count>[0-9]+)")
_SETTING = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_BACKFILL = re.compile(r"\bbf_interval=([0-9]+)")


@dataclass(frozen=True, slots=True)
class Partition:
    """nodes: how many, by Slurm's word for their state. The others: of a node, as Slurm writes
    them, all that occur.
    """

    name: str
    default: bool
    up: bool
    limit: str
    nodes: dict[str, int]
    cpus: tuple[str, ...]
    memory_mib: tuple[str, ...]
    gpus: tuple[str, ...]


def partitions(text: str) -> list[Partition]:
    """Of `SINFO`'s output: one line per partition and kind of nodes."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 8 and fields[3].isdecimal():
            found.setdefault(fields[0], []).append(fields)
    return [_partition(name, lines) for name, lines in found.items()]


def settings(text: str) -> dict[str, str]:
    """Of `CONFIG`'s output."""
    return dict(_SETTING.findall(text))


def describe(partition: Partition) -> str:
    """`default; 4 nodes (3 idle, 1 alloc) of 8 CPUs, 7.8 GiB, 2 GPUs; jobs of at most infinite`."""
    count = sum(partition.nodes.values())
    states = ", ".join(f"{number} {state}" for state, number in partition.nodes.items())
    memory = [f"{int(m.rstrip('+')) / 1024:.3g}" for m in partition.memory_mib]
    gpus = f"{' or '.join(partition.gpus)} GPUs" if partition.gpus else "no GPU"
    parts = ["default"] if partition.default else []
    parts += [] if partition.up else ["not up"]
    parts += [
        f"{count} node{'s' * (count != 1)} ({states}) of {' or '.join(partition.cpus)} CPUs,"
        f" {' or '.join(memory)} GiB, {gpus}"
    ]
    parts += [f"time limit {partition.limit}"]
    return "; ".join(parts)


def limits(found: dict[str, str]) -> str:
    """What of Slurm's settings matters to a run."""
    interval = _BACKFILL.search(found.get("SchedulerParameters", ""))
    told = [
        f"a dead node is noticed after {found.get('SlurmdTimeout', '?')} (not waited for)",
        f"KillWait {found.get('KillWait', '?')}",
        f"backfill every {interval[1] if interval else 30} s (hetjobs start by it)",
        f"preemption {found.get('PreemptType', '?').removeprefix('preempt/')}",
        f"accounting {found.get('AccountingStorageType', '?').removeprefix('accounting_storage/')}"
        " (not needed)",
    ]
    return "; ".join(told)


def _partition(name: str, lines: list[list[str]]) -> Partition:
    nodes: dict[str, int] = {}
    for line in lines:
        # idle* (does not answer) and idle~ (asleep) are told apart from idle.
        nodes[line[4]] = nodes.get(line[4], 0) + int(line[3])
    return Partition(
        name.rstrip("*"),
        name.endswith("*"),
        lines[0][1] == "up",
        lines[0][2],
        nodes,
        _all(line[5] for line in lines),
        _all(line[6] for line in lines),
        _all(_gpus(line[7]) for line in lines),
    )


def _gpus(gres: str) -> str:
    found = [f"{m['count']} {m['kind'] or ''}".strip() for m in _GPU.finditer(gres)]
    return " + ".join(found)


def _all(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, values)))
