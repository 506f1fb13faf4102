"""What the timeline, the gateway and the metrics are told of a run that heals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.cluster.reporter import Reporter
from tarragon_hpc.observe.metrics import HeadMetrics
from tarragon_hpc.observe.timeline import Timeline
from tarragon_hpc.orchestrator import events as ev
from tests.unit.orchestrator.conftest import Scenario

if TYPE_CHECKING:
    from pathlib import Path


class Story(Scenario):
    """A scenario that a reporter observes; `lines` is the timeline since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gateway: list[tuple[object, ...]] = []
        self.metrics = HeadMetrics()
        self.timeline = Timeline(path)
        self.reporter = Reporter(self, self.timeline, self.metrics, dict)
        self.read = 0
        super().__init__()

    def __getattr__(self, name: str):
        if not name.startswith(("on_worker", "set_serving")):
            raise AttributeError(name)
        return lambda *args: self.gateway.append((name, *args))

    def record(self, event: ev.Event):
        before = self.state
        after = super().record(event)
        self.reporter.observe(before, after, event)
        return after

    def lines(self):
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        new, self.read = lines[self.read :], len(lines)
        return [{k: v for k, v in x.items() if k not in ("time", "mono", "after_s")} for x in new]


@pytest.fixture
def story(tmp_path: Path):
    story = Story(tmp_path / "timeline.jsonl")
    story.running()
    story.lines()
    yield story
    story.timeline.close()


def test_a_masked_failure_is_told_even_after_the_worker_was_replaced(story):
    story.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    story.happen(ev.WorkerStarted, "ew1", 2, 101)
    story.lines()
    story.happen(ev.FailureMasked, "ew1", 1, "aw0.1", "lost", 0.03, 0.02, 0.01, 12)
    assert story.lines() == [
        {
            "event": "failure masked",
            "worker": "ew1",
            "incarnation": 1,
            "how": "lost",
            "by": "aw0.1",
            "detected_ago_s": 0.03,
            "rerouted_ago_s": 0.02,
            "answered_ago_s": 0.01,
            "pairs": 12,
        }
    ]


def test_a_connection_is_told_only_if_it_is_not_the_one_to_expect(story):
    story.happen(ev.WorkerLinked, "aw0", 1, "ew0", 1, "shm")
    assert story.lines() == []
    story.happen(ev.WorkerLinked, "aw0", 1, "ew1", 1, "tcp", "rdma: only here")
    (line,) = story.lines()
    assert line == {
        "event": "peer linked",
        "worker": "aw0",
        "incarnation": 1,
        "peer": "ew1",
        "kind": "tcp",
        "reason": "rdma: only here",
    }


def test_every_step_of_healing_has_its_line(story):
    ew0 = {"worker": "ew0", "incarnation": 1}
    story.happen(ev.WorkerSuspected, "ew0", 1, "aw0.1", "slow")
    story.happen(ev.WorkerCleared, "ew0", 1, "aw0.1")
    story.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    story.happen(ev.TablePublished, 2, [["ew0"], ["ew0"], [], []])
    story.happen(ev.LoadAsked, "ew0", 1, [2, 3], "why")
    story.happen(ev.HoldingReported, "ew0", 1, [0, 1, 2], "3: no such file")
    story.happen(ev.UnloadAsked, "ew0", 1, [2], "others hold them")
    story.happen(ev.WorkerGivenUp, "ew1", 1, "given up after 5 restarts in 9 s: x")
    story.happen(ev.PlacementChanged, {"ew0": [0, 1, 2, 3]}, {"ew0": []}, "without ew1")
    lines = story.lines()
    assert lines.pop(2)["event"] == "worker lost"
    assert lines == [
        {"event": "worker suspected", **ew0, "by": "aw0.1", "reason": "slow"},
        {"event": "worker trusted again", **ew0, "by": "aw0.1"},
        {"event": "table published", "epoch": 2, "holders": "ew0.1", "short": 2, "missing": 2},
        {"event": "load asked", **ew0, "experts": "2-3", "reason": "why"},
        {"event": "experts held", **ew0, "experts": "0-2", "error": "3: no such file"},
        {"event": "unload asked", **ew0, "experts": "2", "reason": "others hold them"},
        {
            "event": "worker given up",
            "worker": "ew1",
            "incarnation": 1,
            "reason": "given up after 5 restarts in 9 s: x",
        },
        {"event": "placement changed", "reason": "without ew1"},
    ]


def test_a_silent_aw_and_what_aws_are_told_of_stores(story):
    aw1 = {"worker": "aw1", "incarnation": 1}
    story.gateway.clear()
    story.happen(ev.WorkerSilent, "aw1", 1, 2.0)
    story.happen(ev.WorkerHeard, "aw1", 1)
    story.happen(ev.StoresSent, "aw1", 1, {"cs1": 1, "cs0": 2})
    story.happen(ev.StoresSent, "aw1", 1, {})
    assert story.gateway == [("on_worker_silent", "aw1", 1), ("on_worker_heard", "aw1", 1)]
    assert story.lines() == [
        {"event": "worker silent", **aw1, "silent_s": 2.0},
        {"event": "worker heard again", **aw1},
        {"event": "stores told", **aw1, "stores": "cs0.2 cs1.1"},
        {"event": "stores told", **aw1, "stores": ""},
    ]


def test_the_loss_is_in_the_timeline_before_what_the_gateway_does_about_it(story):
    """A story begins with its first evidence: `requests moved` alone is none."""

    def moved(worker, incarnation, reason):
        more = {"worker": worker, "incarnation": incarnation}
        story.timeline.record("requests moved", count=3, waiting=0, **more)
        story.timeline.record("request resumed", worker="aw0", incarnation=1, left="aw1.1")

    story.on_worker_lost = moved
    story.happen(ev.WorkerLost, "aw1", 1, "process", "its process ended")
    events = [line["event"] for line in story.lines()]
    assert events == ["worker lost", "requests moved", "request resumed"]
    sample = story.metrics.registry.get_sample_value
    for phase in ("moved", "resumed"):
        assert sample("tarragon_failover_seconds_count", {"phase": phase}) == 1


def test_an_aw_comes_and_goes(story):
    story.gateway.clear()
    story.happen(ev.WorkerAdded, "aw2", 0, "scaled to aw=3")
    story.happen(ev.WorkerRetired, "aw1", 1, "scaled to aw=2")
    story.happen(ev.WorkerDrained, "aw1", 1, "scaled to aw=2")
    story.happen(ev.WorkerLeaving, "aw1", 1, "scaled to aw=2")
    story.happen(ev.WorkerExited, "aw1", 1, "exit status 0")
    story.happen(ev.WorkerRemoved, "aw1", 1)
    assert story.gateway == [
        ("on_worker_draining", "aw1", 1),
        ("on_worker_lost", "aw1", 1, "scaled to aw=2"),
    ]
    assert [line["event"] for line in story.lines()] == [
        "worker added",
        "worker retired",
        "worker draining",
        "worker leaving",
        "worker stopped",
        "worker removed",
    ]
    sample = story.metrics.registry.get_sample_value
    assert sample("tarragon_workers", {"role": "aw", "state": "serving"}) == 1
    assert sample("tarragon_workers", {"role": "aw", "state": "planned"}) == 1
