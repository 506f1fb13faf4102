"""What happened when: one JSON object per line, for people and for measurements.

Every line has `time` (seconds since 1970), `mono` (the head's monotonic clock, for differences)
and `event`. After the loss of a worker incarnation was recorded, later lines about the same one
also have `after_s`, the seconds since then: a failure's story is what has its `worker` and
`incarnation`.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LOST = "worker lost"

Value = str | int | float | bool | None


class Timeline:
    """Appends to a timeline file. Lines are handed to the kernel at once, not synced to disk."""

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        mono: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = path.open("ab", buffering=0)
        self._wall = wall
        self._mono = mono
        self._lost: dict[tuple[str, int], float] = {}
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []

    def listen(self, listener: Callable[[Mapping[str, Any]], None]) -> None:
        """Have every line from now on given to `listener` too, after it was written."""
        self._listeners.append(listener)

    def record(
        self,
        event: str,
        *,
        worker: str | None = None,
        incarnation: int | None = None,
        **more: Value,
    ) -> None:
        """One thing that happened now; `worker` and `incarnation` if it is about one."""
        now = self._mono()
        line: dict[str, Value] = {"time": round(self._wall(), 6), "mono": round(now, 6)}
        line["event"] = event
        if worker is not None and incarnation is not None:
            line |= {"worker": worker, "incarnation": incarnation}
            lost = self._lost.get((worker, incarnation))
            if lost is not None:
                line["after_s"] = round(now - lost, 6)
            elif event == LOST:
                self._lost[worker, incarnation] = now
        line |= more
        self._file.write(msgspec.json.encode(line) + b"\n")
        for listener in self._listeners:
            listener(line)

    def close(self) -> None:
        """Safe to call twice."""
        self._file.close()


def read_timeline(path: Path) -> list[dict[str, Any]]:
    """The lines of a timeline so far; none if there is no such file. Damaged ones are left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_lines(data)


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """The lines of a part of a timeline. Damaged ones are left out."""
    lines = []
    for raw in data.split(b"\n"):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            lines.append(msgspec.json.decode(raw, type=dict[str, Any]))
    return lines
