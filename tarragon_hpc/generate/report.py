"""How a batch is doing, and who did what in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from tarragon_hpc.generate.outputs import Outcome

_SHOWN = {"aw": ("sequences", "tokens", "steps"), "ew": ("rows", "batches")}


@dataclass(slots=True)
class Tally:
    """What has been answered so far. refused: 4xx, final; failed: to be tried by another run."""

    done: int = 0
    refused: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    problem: str | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one outcome; the first problem is remembered."""
        self.done += 1
        body = outcome.body if isinstance(outcome.body, dict) else {}
        if outcome.status is not None and outcome.status < 300:
            usage = body.get("usage") or {}
            self.prompt_tokens += usage.get("prompt_tokens") or 0
            self.tokens += usage.get("completion_tokens") or 0
            return
        if outcome.final:
            self.refused += 1
        else:
            self.failed += 1
        reason = (body.get("error") or {}).get("message") or outcome.problem
        self.problem = self.problem or f"{outcome.custom_id}: HTTP {outcome.status}: {reason}"


class _SpeedColumn(ProgressColumn):
    """Generated tokens per second since the first request was sent."""

    def render(self, task: Task) -> Text:
        tokens, seconds = task.fields.get("tokens", 0), task.finished_time or task.elapsed
        return Text(f"{tokens / seconds:.0f} tok/s" if tokens and seconds else "- tok/s")


def progress_bar(console: Console) -> Progress:
    """Columns: what, bar, requests, tokens/s, time so far, time left."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _SpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def contributions(status: dict[str, Any]) -> Table:
    """Who did what, from `status`: counters of every worker that reported some."""
    table = Table(title="who did what", box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("worker")
    table.add_column("experts")
    table.add_column("work")
    for worker in status["workers"]:
        stats = worker.get("stats") or {}
        parts = [f"{stats[k]:.0f} {k}" for k in _SHOWN.get(worker["role"], ()) if k in stats]
        held = len(worker["experts"])
        table.add_row(worker["id"], str(held) if held else "", ", ".join(parts) or "-")
    return table


def closing_line(tally: Tally, seconds: float) -> str:
    """`32 requests, 1536 tokens in 4.1 s: 375 tokens/s`, and what went wrong."""
    speed = tally.tokens / seconds if seconds else 0.0
    line = (
        f"{tally.done} requests, {tally.prompt_tokens} prompt tokens, {tally.tokens} tokens"
        f" in {seconds:.1f} s: {speed:.0f} tokens/s"
    )
    if tally.refused:
        line += f"; {tally.refused} refused"
    if tally.failed:
        line += f"; {tally.failed} failed (run again to retry)"
    if tally.problem:
        line += f"; the first: {tally.problem}"
    return line
