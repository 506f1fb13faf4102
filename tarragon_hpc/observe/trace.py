"""What an AW exchanges with EWs and checkpoint stores over time, for measurements.

An AW that finds the environment variable TARRAGON_TRACE writes a trace into that folder when it
leaves in good order. Times are seconds of the host's monotonic clock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tarragon_hpc.ids import Incarnation

TRACE = "TARRAGON_TRACE"


class ExpertCall(msgspec.Struct, frozen=True, array_like=True):
    """A layer's rows, from the beginning of their dispatch (`posted`: its end) until their outputs
    had been added up.
    """

    began: float
    posted: float
    ended: float
    request_bytes: int
    reply_bytes: int


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A frame that was posted to a store; `kind` as in `wire.kv`."""

    time: float
    nbytes: int
    kind: int


class Trace(msgspec.Struct, frozen=True):
    """Of one AW, oldest first; the last ones are kept."""

    worker: str
    calls: list[ExpertCall]
    frames: list[Frame]


def trace_file(who: Incarnation) -> Path | None:
    """Where an AW's trace is wanted; None if it is not."""
    folder = os.environ.get(TRACE)
    return Path(folder) / f"{who}.trace.json" if folder else None


def write_trace(path: Path, trace: Trace) -> None:
    """Make the folder too if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(trace))


def read_traces(folder: Path) -> list[Trace]:
    """All traces in a folder, by worker. Raises msgspec.DecodeError for a file that is none."""
    files = sorted(folder.glob("*.trace.json"))
    return [msgspec.json.decode(file.read_bytes(), type=Trace) for file in files]
