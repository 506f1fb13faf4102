"""What the timeline of a run says, for tests that have its directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.cluster.rendezvous import TIMELINE
from tarragon_hpc.observe.timeline import read_timeline

if TYPE_CHECKING:
    from pathlib import Path


def told(run_dir: Path, event: str, worker: str | None = None) -> list[dict[str, Any]]:
    """The lines of an event, in order; of one worker or of all."""
    lines = read_timeline(run_dir / TIMELINE)
    return [e for e in lines if e["event"] == event and worker in (None, e.get("worker"))]
