"""The run's memory: every event, appended and on disk before anything is done about it.

One JSON object per line: `{"wall": seconds since 1970, "event": {…}}`. A line that a crash cut
short can only be the last one; it was never acted on and is dropped.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.orchestrator import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line. `wall` is for people; decisions use the event's own monotonic time."""

    wall: float
    event: ev.Event


_read_entry = msgspec.json.Decoder(Entry)


class Journal:
    """Appends to a journal file (mode 0600), from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, _whole_bytes(self._file))
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def append(self, events: Iterable[ev.Event]) -> None:
        """Write events; returns once they are on disk. Raises ClusterError."""
        wall = round(time.time(), 6)
        lines = b"".join(msgspec.json.encode(Entry(wall, event)) + b"\n" for event in events)
        try:
            while lines:
                lines = lines[os.write(self._file, lines) :]
            os.fsync(self._file)
        except OSError as error:
            raise ClusterError(f"{self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_journal(path: Path) -> list[Entry]:
    """All entries; a torn last line is left out. Raises ClusterError naming a damaged line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClusterError(f"{path}: {error.strerror}") from None
    entries = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            entries.append(_read_entry.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ClusterError(f"{path}: line {number} is damaged: {error}") from None
    return entries


def _whole_bytes(file: int) -> int:
    """The length of the file up to its last complete line."""
    size = os.fstat(file).st_size
    step = 1 << 16
    end = size
    while end > 0:
        start = max(0, end - step)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
