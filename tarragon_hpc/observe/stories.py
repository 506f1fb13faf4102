"""Failures as stories: from the lines of a timeline to one entry per failure. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tarragon_hpc.ids import Role
from tarragon_hpc.observe.story import Mask, Passed, Story

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT = 256
NOTE = "chaos: "

_FAULTS = ("kill", "stop", "slow", "cut", "silence")
_END = ("cont", "heal")
_EVIDENCE = ("failure masked", "worker suspected", "worker silent", "worker lost")
_NOTE_SLACK_S = 0.05
_BACK = ("worker trusted again", "worker heard again")


class Stories:
    """The failures of a run. Feed the lines of its timeline in order; the last ones are kept."""

    def __init__(self, keep: int = KEPT) -> None:
        self.all: deque[Story] = deque(maxlen=keep)

    def add(self, line: Mapping[str, Any]) -> list[Passed]:
        """Take in a line; returns which phases it says that failures have reached."""
        event = str(line.get("event"))
        if event == "table published":
            return self._table(line)
        if event == "stores told":
            return self._stores(line)
        if event == "request resumed":
            return self._resumed(line)
        if "worker" not in line or "incarnation" not in line:
            return []
        if event.startswith(NOTE):
            return self._note(line, event.removeprefix(NOTE))
        if event in _EVIDENCE:
            return self._evidence(line, event)
        if event == "requests moved":
            return self._moved(line)
        return self._course(line, event)

    def _note(self, line: Mapping[str, Any], fault: str) -> list[Passed]:
        at = line["mono"] - line.get("ago_s", 0.0)
        story = self._last(line)
        if fault in _FAULTS:
            # The note may come after the first evidence of what it tells of, in the same story;
            # evidence from long before it is of something else; so is a fault that nobody noticed.
            if story is None or story.settled or at > story.at.get("detected", at) + _NOTE_SLACK_S:
                story = self._begin(line)
            story.fault = story.fault or fault
            story.lasting = fault != "kill"
            if story.injected is None:
                story.injected = at
                if "detected" in story.at:
                    return [Passed("detected", story.at["detected"] - at)]
        elif fault in _END and story is not None:
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

    def _moved(self, line: Mapping[str, Any]) -> list[Passed]:
        """Requests are taken from an AW; if it only leaves, that is no failure."""
        story = self._last(line)
        if story is None or story.over:
            return []
        story.moved.requests += line.get("count", 0)
        story.moved.waiting += line.get("waiting", 0)
        return _reach(story, "moved", line)

    def _resumed(self, line: Mapping[str, Any]) -> list[Passed]:
        """A request goes on; the story is that of the AW that had it before."""
        worker, incarnation = _split(str(line.get("left", "")))
        story = self._last({"worker": worker, "incarnation": incarnation})
        if story is None or "detected" not in story.at:
            return []
        moved = story.moved
        moved.resumed += 1
        moved.restored += line.get("restored", 0)
        moved.cached += line.get("cached", 0)
        moved.computed += line.get("computed", 0)
        moved.nbytes += line.get("nbytes", 0)
        story.at.setdefault("resumed", line["mono"])
        story.at["resumed_last"] = line["mono"]
        return [Passed("resumed", line["mono"] - story.at["detected"])]

    def _stores(self, line: Mapping[str, Any]) -> list[Passed]:
        """An AW is told which stores serve: without one that was lost, then with its successor."""
        told = dict(_split(name) for name in str(line.get("stores", "")).split())
        passed = []
        for story in self._open(Role.CS):
            number = told.get(story.worker, 0)
            if number != story.incarnation:
                passed += _reach(story, "told", line)
            if "ready" in story.at and number > story.incarnation:
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
        for story in self._open(Role.EW):
            passed += _reach(story, "table", line)
            if "ready" in story.at and named.get(story.worker, 0) > story.incarnation:
                passed += _reach(story, "restored", line)
        return passed

    def _open(self, role: Role) -> list[Story]:
        return [s for s in self.all if not s.over and s.worker.startswith(role)]

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
    """The parts of `ew1.2`; a name without a number is nobody's."""
    worker, _, number = name.partition(".")
    return worker, int(number) if number.isdecimal() else 0
