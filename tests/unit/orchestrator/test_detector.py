"""Verdicts from what was heard and when; ends of processes in words."""

from __future__ import annotations

import pytest

from tarragon_hpc.ids import Incarnation
from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.apply import apply
from tarragon_hpc.orchestrator.detector import (
    describe_exit,
    silence_bound_s,
    verdicts,
    was_paused,
)

EW0 = Incarnation("ew0", 1)


def test_silence_is_reported_once_and_taken_back(scenario):
    state = scenario.running().state
    assert verdicts(state, {EW0: 100.0}, 100.9, 1.0) == []
    (silent,) = verdicts(state, {EW0: 100.0}, 101.5, 1.0)
    assert silent == ev.WorkerSilent(101.5, "ew0", 1, 1.5)
    state = apply(state, silent)
    assert verdicts(state, {EW0: 100.0}, 102.0, 1.0) == []
    (heard,) = verdicts(state, {EW0: 102.1}, 102.2, 1.0)
    assert heard == ev.WorkerHeard(102.2, "ew0", 1)
    assert verdicts(apply(state, heard), {EW0: 102.1}, 102.2, 1.0) == []


def test_a_worker_that_still_loads_is_given_time(scenario):
    state = scenario.started().registered().loading().state
    assert verdicts(state, {EW0: 0.0}, 1e6, 1.0) == []
    assert len(verdicts(scenario.ready("ew0").state, {EW0: 0.0}, 1e6, 1.0)) == 1


def test_only_the_current_connected_incarnation_is_judged(scenario):
    state = scenario.running().state
    assert verdicts(state, {Incarnation("ew0", 9): 0.0}, 1e6, 1.0) == []
    dead = scenario.happen(ev.WorkerLost, "ew0", 1, "connection", "gone")
    assert verdicts(dead, {EW0: 0.0}, 1e6, 1.0) == []


def test_a_head_that_stood_still_judges_nobody():
    assert silence_bound_s(100, 10) == 1.0
    assert not was_paused(10.0, 10.4, 1.0)
    assert was_paused(10.0, 10.6, 1.0)


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-99, "killed by signal 99"),
        (0, "exit status 0"),
        (2, "exit status 2"),
        (70, "exit status 70 (a bug in its control thread)"),
        (75, "exit status 75 (it lost the head)"),
        (76, "exit status 76 (it was fenced)"),
    ],
)
def test_exits_in_words(returncode, words):
    assert describe_exit(returncode) == words
