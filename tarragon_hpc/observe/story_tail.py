"""Follows the failures of a run through its timeline file; that disturbs nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarragon_hpc.observe.stories import Stories
from tarragon_hpc.observe.timeline import parse_lines

if TYPE_CHECKING:
    from pathlib import Path

    from tarragon_hpc.observe.story import Story


class StoryTail:
    """The stories of a timeline that is being written."""

    def __init__(self, timeline: Path) -> None:
        self._file = timeline
        self._stories = Stories()
        self._offset = 0

    def latest(self) -> Story | None:
        """The last story that began with a fault on purpose, after reading what is new."""
        with self._file.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in parse_lines(data):
            self._stories.add(line)
        return next((s for s in reversed(self._stories.all) if s.fault is not None), None)
