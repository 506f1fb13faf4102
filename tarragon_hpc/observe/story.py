"""Failures as stories: from the lines of a timeline to one entry per failure. Pure.

A story is about one incarnation of a worker. It begins with a fault (a line "chaos: …") or with the
first evidence, whatever comes first, and is over when the worker is trusted again or its successor
is in use. Seconds are counted from the fault, or from the detection if nobody told of a fault.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT = 256
NOTE = "chaos: "

_FAULTS = ("kill", "stop", "slow")
_EVIDENCE = ("failure masked", "worker suspected", "worker silent", "worker lost")
_NOTE_SLACK_S = 0.05
_BACK = ("worker trusted again", "worker heard again")
PHASES = (
    "detected", "rerouted", "answered", "fenced", "table", "started", "ready", "restored", "back",
)  # fmt: skip
"""What may happen in a failure: noticed by somebody; its rows went elsewhere; the first of them was
answered; the process was killed for sure; a new table was published; a successor was started; it
was ready; a table names it (AW: it routes); or the worker itself was trusted again."""


class Passed(NamedTuple):
    """A phase that a failure has reached; seconds since it was detected.

    For "detected" itself: since the fault. "rerouted" and "answered" come once per AW, counted from
    when that AW noticed.
    """

    phase: str
    seconds: float


@dataclass(slots=True)
class Mask:
    """How one AW got around the failure; times of the head's clock."""

    how: str
    by: str
    pairs: int
    at: dict[str, float]


@dataclass(slots=True)
class Story:
    """One failure. `at`: phase → the head's monotonic clock, for phases that were reached."""

    worker: str
    incarnation: int
    began: float
    """Wall clock of the first line."""
    fault: str | None = None
    injected: float | None = None
    lasting: bool = False
    """A stop or slowdown that nobody has ended yet."""
    how: str = ""
    by: str = ""
    at: dict[str, float] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Nothing more is to be expected."""
        return "restored" in self.at or ("back" in self.at and not self.lasting)

    @property
    def settled(self) -> bool:
        """Over, or such that nothing need come: what was done to the worker has ended unnoticed."""
        if self.fault == "kill" or self.lasting or "detected" in self.at:
            return self.over
        return True

    def since(self) -> float | None:
        """The moment that seconds are counted from."""
        return self.injected if self.injected is not None else self.at.get("detected")

    def describe(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        start = self.since()
        zero = 0.0 if start is None else start
        return {
            "worker": self.worker,
            "incarnation": self.incarnation,
            "time": self.began,
            "fault": self.fault,
            "how": self.how,
            "by": self.by,
            "seconds": {p: round(self.at[p] - zero, 6) for p in PHASES if p in self.at},
            "masked_by": [
                {"by": m.by, "how": m.how, "pairs": m.pairs}
                | {f"{phase}_s": round(at - zero, 6) for phase, at in m.at.items()}
                for m in self.masks
            ],
            "over": self.over,
        }


class Stories:
    """The failures of a run. Feed the lines of its timeline in order; the last ones are kept."""

    def __init__(self, keep: int = KEPT) -> None:
        self.all: deque[Story] = deque(maxlen=keep)

    def add(self, line: Mapping[str, Any]) -> list[Passed]:
        """Take in a line; returns which phases it says that failures have reached."""
        event = str(line.get("event"))
        if event == "table published":
            return self._table(line)
        if "worker" not in line or "incarnation" not in line:
            return []
        if event.startswith(NOTE):
            return self._note(line, event.removeprefix(NOTE))
        if event in _EVIDENCE:
            return self._evidence(line, event)
        return self._course(line, event)

    def _note(self, line: Mapping[str, Any], fault: str) -> list[Passed]:
        at = line["mono"] - line.get("ago_s", 0.0)
        story = self._last(line)
        if fault in _FAULTS:
            # The note may come after the first evidence of what it tells of, in the same story;
            # evidence from long before it is of something else.
            if story is None or story.over or at > story.at.get("detected", at) + _NOTE_SLACK_S:
                story = self._begin(line)
            story.fault = story.fault or fault
            story.lasting = fault != "kill"
            if story.injected is None:
                story.injected = at
                if "detected" in story.at:
                    return [Passed("detected", story.at["detected"] - at)]
        elif fault == "cont" and story is not None:
            story.lasting = False
        return []

    def _evidence(self, line: Mapping[str, Any], event: str) -> list[Passed]:
        story = self._last(line)
        if story is None or story.over:
            story = self._begin(line)
        at = line["mono"] - line.get("detected_ago_s", 0.0)
        passed = []
        story.at.pop("back", None)
        if "detected" not in story.at or at < story.at["detected"]:
            first = "detected" not in story.at
            story.at["detected"] = at
            story.how, story.by = _told(line, event)
            if first and story.injected is not None:
                passed.append(Passed("detected", at - story.injected))
        if event == "failure masked":
            times = {
                "detected": at,
                "rerouted": line["mono"] - line.get("rerouted_ago_s", 0.0),
                "answered": line["mono"] - line.get("answered_ago_s", 0.0),
            }
            story.masks.append(Mask(*_told(line, event), line.get("pairs", 0), times))
            for phase in ("rerouted", "answered"):
                story.at[phase] = min(times[phase], story.at.get(phase, times[phase]))
                passed.append(Passed(phase, times[phase] - at))
        return passed

    def _course(self, line: Mapping[str, Any], event: str) -> list[Passed]:
        if event in _BACK:
            return self._back(line)
        passed = []
        for story in self.all:
            if story.worker != line["worker"] or story.over:
                continue
            newer = line["incarnation"] > story.incarnation
            if event == "worker fenced" and not newer:
                passed += _reach(story, "fenced", line)
            elif event == "worker started" and newer:
                passed += _reach(story, "started", line)
            elif event == "worker ready" and newer:
                passed += _reach(story, "ready", line)
            elif event == "table taken" and newer:
                passed += _reach(story, "restored", line)
        return passed

    def _back(self, line: Mapping[str, Any]) -> list[Passed]:
        """The last to trust a worker again counts, its peers and the head."""
        story = self._last(line)
        if story is None or "restored" in story.at:
            return []
        passed = _reach(story, "back", line)
        if "back" in story.at:
            story.at["back"] = line["mono"]
        return passed

    def _table(self, line: Mapping[str, Any]) -> list[Passed]:
        named = dict(_split(name) for name in str(line.get("holders", "")).split())
        passed = []
        for story in self.all:
            if story.over:
                continue
            passed += _reach(story, "table", line)
            if "ready" in story.at and named.get(story.worker, 0) > story.incarnation:
                passed += _reach(story, "restored", line)
        return passed

    def _last(self, line: Mapping[str, Any]) -> Story | None:
        """The latest story of the incarnation that a line is about."""
        who = (line["worker"], line["incarnation"])
        return next((s for s in reversed(self.all) if (s.worker, s.incarnation) == who), None)

    def _begin(self, line: Mapping[str, Any]) -> Story:
        self.all.append(Story(line["worker"], line["incarnation"], line["time"]))
        return self.all[-1]


def tell(lines: Iterable[Mapping[str, Any]], last: int) -> list[dict[str, Any]]:
    """The last failures of a timeline, as plain data."""
    stories = Stories()
    for line in lines:
        stories.add(line)
    return [story.describe() for story in list(stories.all)[-last:]]


def _reach(story: Story, phase: str, line: Mapping[str, Any]) -> list[Passed]:
    detected = story.at.get("detected")
    if detected is None or phase in story.at:
        return []
    story.at[phase] = line["mono"]
    return [Passed(phase, line["mono"] - detected)]


def _told(line: Mapping[str, Any], event: str) -> tuple[str, str]:
    """How a failure was noticed, and by whom."""
    match event:
        case "failure masked":
            return str(line.get("how", "masked")), str(line.get("by", ""))
        case "worker suspected":
            return str(line.get("reason", "suspected")), str(line.get("by", ""))
        case "worker silent":
            return "no heartbeats", "head"
        case _:
            return str(line.get("detected", "lost")), "head"


def _split(name: str) -> tuple[str, int]:
    worker, _, number = name.partition(".")
    return worker, int(number)
