"""A failure's story in a line or two, for people. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS = {
    "detected": "noticed",
    "rerouted": "rerouted",
    "answered": "answered",
    "fenced": "fenced",
    "table": "new table",
    "started": "successor started",
    "ready": "successor ready",
    "restored": "capacity restored",
    "back": "trusted again",
}
_DONE = {"kill": "killed", "stop": "stopped", "slow": "slowed down"}


def in_words(story: Mapping[str, Any]) -> str:
    """`ew1.1 killed at 12:00:03Z: noticed after 1.2 ms (lost, by aw0.1), rerouted 1.3 ms, …`."""
    clock = time.strftime("%H:%M:%SZ", time.gmtime(story["time"]))
    who = f"{story['worker']}.{story['incarnation']}"
    begin = f"{who} {_DONE.get(story['fault'] or '', 'failed')} at {clock}"
    if not story["seconds"]:
        return f"{begin}: not noticed"
    parts = []
    for phase, seconds in sorted(story["seconds"].items(), key=lambda item: item[1]):
        part = f"{_WORDS[phase]} {duration(seconds)}"
        if phase == "detected":
            by = f", by {story['by']}" if story["by"] else ""
            after = f" after {duration(seconds)}" if story["fault"] else ""
            part = f"noticed{after} ({story['how']}{by})"
        parts.append(part)
    return f"{begin}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """`1.2 ms`, `340 ms`, `2.41 s`."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    ms = seconds * 1e3
    return f"{ms:.0f} ms" if abs(ms) >= 100 else f"{ms:.1f} ms"
