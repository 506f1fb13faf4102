"""`tarragon status`: a run as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tarragon_hpc.ids import parse_worker_id
from tarragon_hpc.observe.story_words import in_words
from tarragon_hpc.orchestrator.changes import ranges

_FAILURES = 3
_COLOURS = {
    "serving": "green",
    "running": "green",
    "dead": "red",
    "failed": "red",
    "unresponsive": "red",
}


def render(status: dict[str, Any]) -> Group:
    """What `status --json` prints, for people."""
    head = Text.assemble(
        (status["run"], "bold"),
        "  ",
        _word(status["state"]),
        f"  epoch {status['epoch']}  {status['endpoint'] or 'no endpoint'}",
    )
    if status.get("reason"):
        head.append(f"\n{status['reason']}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("worker", "state", "inc", "pid", "host", "experts", "links", ""):
        table.add_column(column, overflow="fold")
    for worker in status["workers"]:
        table.add_row(
            worker["id"],
            _word(worker["state"]),
            str(worker["incarnation"]),
            str(worker["pid"] or ""),
            worker["host"] or "",
            ranges(worker["experts"]),
            links_in_words(worker.get("links") or {}),
            Text(_remark(worker)),
        )
    parts: list[Text | Table] = [head, table]
    if checkpoint := (status.get("checkpoint") or {}).get("lines"):
        parts.append(Text("\n".join(["", *checkpoint])))
    if coverage := (status.get("coverage") or {}).get("lines"):
        parts.append(Text("\n".join(["", *coverage])))
    if failures := status.get("failures"):
        shown = [in_words(story) for story in failures[-_FAILURES:]]
        parts.append(Text("\n".join(["", *shown])))
    return Group(*parts)


def _word(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, "yellow"))


def links_in_words(links: dict[str, str]) -> str:
    """`all shm`, `ew0-2 shm, ew3 tcp`: the transport to each peer."""
    kinds = set(links.values())
    if len(kinds) == 1:
        return f"all {kinds.pop()}"
    groups: dict[tuple[str, str], list[int]] = {}
    for peer, kind in links.items():
        role, number = parse_worker_id(peer)
        groups.setdefault((role, kind), []).append(number)
    return ", ".join(f"{role}{ranges(group)} {kind}" for (role, kind), group in groups.items())


def _remark(worker: dict[str, Any]) -> str:
    told = [worker.get("reason") or "", worker.get("exit") or ""]
    return ", ".join(dict.fromkeys(part for part in told if part))
