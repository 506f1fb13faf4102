"""A failure's story in a line or two, for people. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tarragon_hpc.observe.units import size

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS = {
    "detected": "noticed",
    "rerouted": "rerouted",
    "answered": "answered",
    "moved": "requests moved",
    "resumed": "first resumed",
    "resumed_last": "last resumed",
    "fenced": "fenced",
    "table": "new table",
    "told": "AWs told",
    "started": "successor started",
    "ready": "successor ready",
    "restored": "capacity restored",
    "back": "trusted again",
}
_DONE = {
    "kill": "killed",
    "stop": "stopped",
    "slow": "slowed down",
    "cut": "cut off",
    "silence": "silenced",
}


def in_words(story: Mapping[str, Any]) -> str:
    """`ew1.1 killed at 12:00:03Z: noticed after 1.2 ms (lost, by aw0.1), rerouted 1.3 ms, …`; of an
    AW also what became of its requests.
    """
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
    return f"{begin}: {', '.join(parts)}{_of_requests(story.get('moved') or {})}"


def _of_requests(moved: Mapping[str, int]) -> str:
    """`; 3 requests moved (1 waited), 3 resumed: 512 tokens restored (2.0 MiB), 3 computed`."""
    if not moved.get("requests") and not moved.get("resumed"):
        return ""
    waited = f" ({moved['waiting']} waited for an AW)" if moved["waiting"] else ""
    told = f"; {moved['requests']} moved{waited}, {moved['resumed']} resumed"
    if moved["resumed"]:
        parts = [f"{moved['restored']} tokens restored ({size(moved['nbytes'])})"]
        parts += [f"{moved['cached']} found in a cache"] * bool(moved["cached"])
        parts.append(f"{moved['computed']} computed")
        told += f": {', '.join(parts)}"
    return told


def duration(seconds: float) -> str:
    """`1.2 ms`, `340 ms`, `2.41 s`."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    ms = seconds * 1e3
    return f"{ms:.0f} ms" if abs(ms) >= 100 else f"{ms:.1f} ms"
