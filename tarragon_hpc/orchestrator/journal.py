"""The run's memory: every event, appended and on disk before anything is done about it.

One JSON object per line: `{"wall": seconds since 1970, "event": {…}}`. A line that a crash cut
short can only be the last one; it was never acted on and is dropped.

Every head of a run has a journal of its own, so that one that was superseded, and does not know it
yet, disturbs nobody: journal.jsonl, journal.2.jsonl, … The first event of a later one says how many
entries of the earlier ones count.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tarragon_hpc.errors import ClusterError
from tarragon_hpc.orchestrator import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line. `wall` is for people; decisions use the event's own monotonic time."""

    wall: float
    event: ev.Event


_read_entry = msgspec.json.Decoder(Entry)
_NAME = re.compile(r"journal(?:\.([1-9][0-9]{0,8}))?\.jsonl")


class Chronicle(NamedTuple):
    """What the journals of all heads say together. `counted`: entries by the number of the head."""

    entries: list[Entry]
    counted: dict[int, int]

    @property
    def head(self) -> int:
        """The newest head that has decided anything; 0: none has."""
        return max(self.counted, default=0)

    @property
    def lead_s(self) -> float:
        """By how much the wall clock is ahead of that head's own clock."""
        entries = self.entries[len(self.entries) - self.counted[self.head] :]
        # An entry is written some time after its event: the earliest tells best.
        return min(entry.wall - entry.event.at for entry in entries)


def journal_name(head: int) -> str:
    """The journal of the `head`-th head of a run."""
    return "journal.jsonl" if head == 1 else f"journal.{head}.jsonl"


def read_chronicle(run_dir: Path) -> Chronicle:
    """All that counts of the journals of a run; nothing, if there is none yet.

    Raises ClusterError naming a damaged line, or a journal that lacks entries.
    """
    try:
        names = [name for path in run_dir.iterdir() if (name := _NAME.fullmatch(path.name))]
    except OSError as error:
        raise ClusterError(f"{run_dir}: {error.strerror}") from None
    for number in sorted((int(name[1] or 1) for name in names), reverse=True):
        path = run_dir / journal_name(number)
        entries = read_journal(path)
        if not entries:
            continue  # that head died, or was superseded, before it had decided anything
        match entries[0].event:
            case ev.RunCreated():
                earlier: dict[int, int] = {}
            case ev.HeadChanged(counted=counted):
                earlier = counted
            case _:
                raise ClusterError(f"{path}: line 1 is not how a journal begins")
        before = [entry for head in sorted(earlier) for entry in _first(run_dir, head, earlier)]
        return Chronicle([*before, *entries], earlier | {number: len(entries)})
    return Chronicle([], {})


def _first(run_dir: Path, head: int, counted: Mapping[int, int]) -> list[Entry]:
    path = run_dir / journal_name(head)
    entries = read_journal(path)
    if len(entries) < counted[head]:
        raise ClusterError(f"{path}: has {len(entries)} entries of {counted[head]}")
    return entries[: counted[head]]


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
