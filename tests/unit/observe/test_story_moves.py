"""The story of a lost AW, with its requests, and of a lost CS."""

from __future__ import annotations

import pytest

from tarragon_hpc.observe.stories import Stories, tell
from tarragon_hpc.observe.story import Passed
from tarragon_hpc.observe.story_words import in_words
from tarragon_hpc.observe.units import size
from tests.unit.observe.test_story import approx, line


def resumed(mono, left="aw1.2", restored=100, computed=1, cached=0, nbytes=4096, **more):
    return line(
        mono, "request resumed", "aw0", 1, left=left, restored=restored, computed=computed,
        cached=cached, nbytes=nbytes, **more,
    )  # fmt: skip


AW = [
    line(10.002, "worker lost", "aw1", 2, detected="process", reason="its process ended"),
    line(10.003, "requests moved", "aw1", 2, count=3, waiting=1, reason="lost"),
    line(10.003, "chaos: kill", "aw1", 2, pid=5, ago_s=0.003),
    line(10.004, "worker started", "aw1", 3, pid=6),
    line(10.004, "table published", epoch=2, holders="ew0.1"),
    resumed(10.022),
    resumed(10.030, restored=0, computed=77, nbytes=0, cached=16, reason="unknown"),
    line(11.0, "worker ready", "aw1", 3),
    line(11.1, "table taken", "aw1", 3, epoch=1),
    resumed(11.5),
]


def test_a_lost_aw_from_the_signal_to_its_last_request():
    (story,) = tell(AW, 5)
    assert (story["worker"], story["incarnation"], story["over"]) == ("aw1", 2, True)
    assert story["seconds"] == approx(
        {
            "detected": 0.002, "moved": 0.003, "resumed": 0.022, "resumed_last": 1.5,
            "started": 0.004, "ready": 1.0, "restored": 1.1,
        }
    )  # fmt: skip
    assert story["moved"] == {
        "requests": 3, "waiting": 1, "resumed": 3, "restored": 200, "cached": 16, "computed": 79,
        "nbytes": 8192,
    }  # fmt: skip


def test_moving_is_passed_once_and_resuming_for_every_request():
    stories = Stories()
    passed = [p for entry in AW for p in stories.add(entry)]
    assert [p.phase for p in passed] == [
        "moved", "detected", "started", "resumed", "resumed", "ready", "restored", "resumed",
    ]  # fmt: skip
    assert passed[0] == Passed("moved", pytest.approx(0.001))
    assert passed[3] == Passed("resumed", pytest.approx(0.020))


def test_in_words():
    (story,) = tell(AW, 1)
    assert in_words(story) == (
        "aw1.2 killed at 00:16:50Z: noticed after 2.0 ms (process, by head), requests moved 3.0 ms,"
        " successor started 4.0 ms, first resumed 22.0 ms, successor ready 1.00 s,"
        " capacity restored 1.10 s, last resumed 1.50 s; 3 moved (1 waited for an AW), 3 resumed:"
        " 200 tokens restored (8.0 KiB), 16 found in a cache, 79 computed"
    )
    (story,) = tell(AW[:2], 1)
    assert in_words(story).endswith(
        "requests moved 1.0 ms; 3 moved (1 waited for an AW), 0 resumed"
    )
    (story,) = tell([AW[0], resumed(10.1, restored=0, nbytes=0, computed=9)], 1)
    assert in_words(story).endswith("1 resumed: 0 tokens restored (0 bytes), 9 computed")


def test_requests_of_an_aw_that_only_leaves_are_no_failure():
    leaving = [line(1.0, "requests moved", "aw1", 2, count=3, waiting=0), resumed(1.1)]
    assert tell(leaving, 5) == []
    silent = [
        line(1.0, "worker silent", "aw1", 2, silent_s=1.0),
        line(1.1, "worker heard again", "aw1", 2),
    ]
    (story,) = tell([*silent, line(2.0, "requests moved", "aw1", 2, count=3, waiting=0)], 5)
    assert story["moved"]["requests"] == 0


def test_a_request_that_is_lost_twice_belongs_to_the_one_it_was_lost_with():
    lines = [
        *AW[:2],
        resumed(10.1),
        line(10.2, "worker lost", "aw0", 1, detected="process"),
        line(10.2, "requests moved", "aw0", 1, count=5, waiting=0),
        resumed(10.4, left="aw0.1"),
        resumed(10.5, left="aw7.1"),
        resumed(10.5, left="None"),
    ]
    first, second = tell(lines, 5)
    assert (first["moved"]["resumed"], second["moved"]["resumed"]) == (1, 1)
    assert second["seconds"]["resumed"] == pytest.approx(0.2)


def test_a_lost_store_until_aws_use_its_successor():
    both = "cs0.1 cs1.1"
    lines = [
        line(0.1, "stores told", "aw0", 1, stores=both),
        line(1.000, "worker lost", "cs1", 1, detected="process", reason="its process ended"),
        line(1.002, "stores told", "aw0", 1, stores="cs0.1"),
        line(1.003, "stores told", "aw1", 1, stores="cs0.1"),
        line(1.004, "worker started", "cs1", 2, pid=6),
        line(1.005, "table published", epoch=2, holders="ew0.1"),
        line(1.300, "worker ready", "cs1", 2),
    ]
    (story,) = tell(lines, 5)
    assert not story["over"]
    assert story["seconds"] == approx(
        {"detected": 0, "told": 0.002, "started": 0.004, "ready": 0.3}
    )
    (story,) = tell([*lines, line(1.301, "stores told", "aw0", 1, stores="cs0.1 cs1.2")], 5)
    assert story["over"]
    assert in_words(story).endswith(
        "noticed (process, by head), AWs told 2.0 ms, successor started 4.0 ms,"
        " successor ready 300 ms, capacity restored 301 ms"
    )


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"),
     (5 << 30, "5.0 GiB"), (2048.0, "2.0 KiB")],
)  # fmt: skip
def test_sizes(nbytes, text):
    assert size(nbytes) == text
