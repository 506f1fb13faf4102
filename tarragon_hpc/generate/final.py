"""The report of a batch that has come to its end: report.json and report.txt in its run."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tarragon_hpc.observe.batch_words import in_words
from tarragon_hpc.observe.stories import Stories
from tarragon_hpc.observe.story_words import in_words as story_in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tarragon_hpc.generate.report import Tally

REPORT = "report.json"
NAMES = (REPORT, "report.txt")


@dataclass(frozen=True, slots=True)
class Report:
    """What a batch came to. seconds: since it was begun, waiting in a queue included. heads: how
    many worked on it. failures: of workers, as `status` tells of them.
    """

    run: str
    target: str
    total: int
    tally: Tally
    seconds: float
    heads: int
    jobs: list[str] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Requests without any result."""
        return self.total - self.tally.done

    @property
    def complete(self) -> bool:
        """Every request has a result that is final."""
        return not self.missing and not self.tally.failed

    def plain(self) -> dict[str, Any]:
        """For report.json."""
        tally = self.tally
        return {
            "run": self.run,
            "output": self.target,
            "complete": self.complete,
            "requests": self.total,
            "answered": tally.done - tally.refused - tally.failed,
            "refused": tally.refused,
            "failed": tally.failed,
            "missing": self.missing,
            "prompt_tokens": tally.prompt_tokens,
            "tokens": tally.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(self._speed(), 1),
            "heads": self.heads,
            "jobs": self.jobs,
            "failures_overcome": len(self.failures),
            "failures": self.failures,
            "first_problem": tally.problem,
        }

    def text(self) -> str:
        """For report.txt."""
        p = self.plain()
        lines = [
            f"run        {self.run}",
            f"output     {self.target}",
            f"requests   {self.total}: {p['answered']} answered, {p['refused']} refused,"
            f" {p['failed']} failed, {p['missing']} without a result",
            f"tokens     {p['prompt_tokens']} of prompts, {p['tokens']} generated",
            f"time       {in_words(self.seconds)}, {self._speed():.0f} tokens/s",
            f"heads      {self.heads}",
        ]
        if self.jobs:
            lines.append(f"jobs       {', '.join(self.jobs)}")
        if self.tally.problem:
            lines.append(f"problem    the first: {self.tally.problem}")
        lines.append(f"failures   {len(self.failures)} of workers")
        lines += [f"           {story_in_words(failure)}" for failure in self.failures]
        return "\n".join(lines) + "\n"

    def _speed(self) -> float:
        return self.tally.tokens / self.seconds if self.seconds > 0 else 0.0


def failures_of(timeline: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The failures of workers that a run's timeline tells of."""
    stories = Stories(keep=100_000)
    for line in timeline:
        stories.add(line)
    return [story.describe() for story in stories.all]


def write_report(run_dir: Path, report: Report) -> None:
    """Put both files in place, whole; an older report is replaced. Raises OSError."""
    data = msgspec.json.format(msgspec.json.encode(report.plain()), indent=2) + b"\n"
    for name, content in zip(NAMES, (data, report.text().encode()), strict=True):
        temporary = run_dir / f".{name}.{secrets.token_hex(4)}"
        temporary.write_bytes(content)
        os.replace(temporary, run_dir / name)
