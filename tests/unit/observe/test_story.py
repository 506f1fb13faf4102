"""From the lines of a timeline to the course of a failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.observe.stories import Stories, tell
from tarragon_hpc.observe.story import PHASES, Passed
from tarragon_hpc.observe.story_words import duration, in_words


def line(mono, event, worker=None, incarnation=None, **more):
    about = {"worker": worker, "incarnation": incarnation} if worker else {}
    return {"time": 1000.0 + mono, "mono": mono, "event": event, **about, **more}


def masked(mono, by, how="lost", detected=0.010, rerouted=0.009, answered=0.004, pairs=3):
    return line(
        mono, "failure masked", "ew1", 1, by=by, how=how, pairs=pairs, detected_ago_s=detected,
        rerouted_ago_s=rerouted, answered_ago_s=answered,
    )  # fmt: skip


KILL = [
    line(1.0, "table published", epoch=1, holders="ew0.1 ew1.1"),
    line(10.002, "worker lost", "ew1", 1, detected="process", reason="its process ended"),
    line(10.003, "chaos: kill", "ew1", 1, pid=5, ago_s=0.003),
    line(10.004, "worker fenced", "ew1", 1),
    line(10.005, "table published", epoch=2, holders="ew0.1"),
    line(10.006, "worker started", "ew1", 2, pid=6),
    masked(10.011, "aw0.1"),
    masked(10.013, "aw1.1", answered=0.003),
    line(10.9, "worker registered", "ew1", 2),
    line(11.0, "worker ready", "ew1", 2),
    line(11.001, "table published", epoch=3, holders="ew0.1 ew1.2"),
    line(11.002, "table taken", "aw0", 1, epoch=3),
]


def approx(seconds):
    return {name: pytest.approx(value, abs=1e-5) for name, value in seconds.items()}


def test_a_kill_from_the_signal_to_the_restored_capacity():
    (story,) = tell(KILL, 5)
    assert (story["worker"], story["incarnation"], story["fault"]) == ("ew1", 1, "kill")
    assert (story["how"], story["by"], story["over"]) == ("lost", "aw0.1", True)
    assert story["seconds"] == approx(
        {
            "detected": 0.001, "rerouted": 0.002, "answered": 0.007, "fenced": 0.004,
            "table": 0.005, "started": 0.006, "ready": 1.0, "restored": 1.001,
        }
    )  # fmt: skip
    first, second = story["masked_by"]
    assert (first["by"], first["how"], first["pairs"]) == ("aw0.1", "lost", 3)
    assert second["answered_s"] == pytest.approx(0.010)


def test_phases_are_told_when_they_are_reached():
    stories = Stories()
    passed = [p for entry in KILL for p in stories.add(entry)]
    assert [p.phase for p in passed] == [
        "detected", "fenced", "table", "started", "rerouted", "answered", "rerouted", "answered",
        "ready", "restored",
    ]  # fmt: skip
    assert passed[0] == Passed("detected", pytest.approx(0.002))
    assert passed[4:6] == [
        Passed("rerouted", pytest.approx(0.001)),
        Passed("answered", pytest.approx(0.006)),
    ]


def test_without_a_note_seconds_count_from_the_detection():
    (story,) = tell([entry for entry in KILL if "chaos" not in entry["event"]], 5)
    assert story["fault"] is None
    assert story["seconds"]["detected"] == 0
    assert story["seconds"]["ready"] == pytest.approx(0.999)


STOP = [
    line(5.001, "chaos: stop", "ew1", 1, pid=5, ago_s=0.001),
    line(5.030, "worker suspected", "ew1", 1, by="aw1.1", reason="silent"),
    masked(5.040, "aw0.1", how="silent"),
    line(6.000, "worker heard again", "ew1", 1),
    line(6.001, "chaos: cont", "ew1", 1, ago_s=0.002),
    line(6.010, "worker trusted again", "ew1", 1, by="aw0.1"),
]


def test_a_worker_that_comes_back_ends_the_story():
    (story,) = tell(STOP, 5)
    assert story["seconds"] == approx(
        {"detected": 0.03, "rerouted": 0.031, "answered": 0.036, "back": 1.01}
    )
    assert (story["fault"], story["how"], story["by"]) == ("stop", "silent", "aw1.1")
    assert story["over"]


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_link_that_is_healed_ends_the_story(fault):
    lines = [
        line(5.0, f"chaos: {fault}", "ew1", 1, pid=5, for_s=1.0),
        masked(5.06, "aw0.1", how="silent", detected=0.03),
        line(6.5, "worker trusted again", "ew1", 1, by="aw0.1"),
    ]
    assert not tell(lines, 5)[0]["over"]
    (story,) = tell([*lines, line(6.6, "chaos: heal", "ew1", 1)], 5)
    assert (story["fault"], story["over"]) == (fault, True)
    assert story["seconds"]["detected"] == pytest.approx(0.03)
    assert in_words(story).startswith(
        f"ew1.1 {'cut off' if fault == 'cut' else 'silenced'} at 00:16:45Z: noticed after 30.0 ms"
    )


def test_what_a_slow_worker_does_until_it_is_let_go_is_one_story():
    slow = [line(1.0, "chaos: slow", "ew1", 1, factor=10.0)]
    for i in range(3):
        slow += [masked(2.0 + i, "aw0.1", how="overdue")]
        slow += [line(2.5 + i, "worker trusted again", "ew1", 1)]
    (story,) = tell(slow, 5)
    assert not story["over"]
    (story,) = tell([*slow, line(6.0, "chaos: cont", "ew1", 1)], 5)
    assert story["over"]
    assert len(story["masked_by"]) == 3
    assert story["seconds"]["back"] == pytest.approx(3.5)
    later = [line(7.0, "chaos: stop", "ew1", 1), masked(7.1, "aw0.1", how="silent")]
    assert len(tell([*slow, line(6.0, "chaos: cont", "ew1", 1), *later], 5)) == 2


def test_the_death_of_a_replacement_is_a_story_of_its_own():
    lines = [
        *KILL[:6],
        line(10.5, "worker lost", "ew1", 2, detected="exit", reason="killed"),
        line(10.6, "worker started", "ew1", 3),
        line(11.0, "worker ready", "ew1", 3),
        line(11.1, "table published", epoch=3, holders="ew0.1 ew1.3"),
    ]
    first, second = tell(lines, 5)
    assert (first["incarnation"], second["incarnation"]) == (1, 2)
    assert first["over"]
    assert second["over"]
    assert first["seconds"]["started"] == pytest.approx(0.006)
    assert second["seconds"]["restored"] == pytest.approx(0.6)


def test_a_fault_after_one_that_nobody_noticed_is_a_story_of_its_own():
    lines = [
        line(5.0, "chaos: stop", "ew1", 1, ago_s=0.0),
        line(5.2, "chaos: cont", "ew1", 1, ago_s=0.0),
        *KILL,
    ]
    lines.insert(2, line(10.001, "chaos: kill", "ew1", 1, pid=5, ago_s=0.001))
    first, second = tell(lines, 5)
    assert (first["fault"], first["seconds"]) == ("stop", {})
    assert (second["fault"], second["seconds"]["restored"]) == ("kill", pytest.approx(1.001))


def test_an_attention_worker_is_back_when_its_successor_routes():
    lines = [
        line(1.0, "worker lost", "aw0", 1, detected="connection", reason="closed"),
        line(1.1, "worker started", "aw0", 2),
        line(4.0, "worker ready", "aw0", 2),
        line(4.1, "table taken", "aw0", 2, epoch=1),
    ]
    (story,) = tell(lines, 5)
    assert story["seconds"]["restored"] == pytest.approx(3.1)


def test_only_the_last_stories_are_kept():
    lines = [line(float(i), "worker lost", "ew0", i, detected="exit") for i in range(1, 9)]
    assert [s["incarnation"] for s in tell(lines, 3)] == [6, 7, 8]


EVENTS = [
    "chaos: kill", "chaos: stop", "chaos: slow", "chaos: cont", "worker lost", "worker suspected",
    "failure masked", "worker fenced", "worker started", "worker ready", "table taken",
    "worker trusted again", "worker heard again", "exit known", "requests moved", "request resumed",
    "stores told",
]  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS), st.sampled_from(["ew0", "aw1", "cs0"]), st.integers(1, 3)
        ),
        max_size=30,
    )
)
def test_any_timeline_has_stories_that_can_be_told(entries):
    more = {"how": "x", "by": "aw0.1", "left": "aw1.1", "stores": "cs0.2", "count": 1}
    lines = [line(float(i), e, w, n, **more) for i, (e, w, n) in enumerate(entries)]
    for story in tell(lines, 30):
        assert set(story["seconds"]) <= set(PHASES)
        assert in_words(story).startswith(f"{story['worker']}.{story['incarnation']} ")


def test_in_words():
    (story,) = tell(KILL, 1)
    assert in_words(story) == (
        "ew1.1 killed at 00:16:50Z: noticed after 1.0 ms (lost, by aw0.1), rerouted 2.0 ms,"
        " fenced 4.0 ms, new table 5.0 ms, successor started 6.0 ms, answered 7.0 ms,"
        " successor ready 1.00 s, capacity restored 1.00 s"
    )
    (story,) = tell([line(0.0, "worker lost", "ew0", 1, detected="exit")], 1)
    assert in_words(story) == "ew0.1 failed at 00:16:40Z: noticed (exit, by head)"
    (story,) = tell([line(0.0, "chaos: slow", "ew0", 1)], 1)
    assert in_words(story) == "ew0.1 slowed down at 00:16:40Z: not noticed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00123, "1.2 ms"), (0.34, "340 ms"), (2.414, "2.41 s"), (0.0, "0.0 ms")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
