"""The text of squeue → views."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.cluster.slurm.queue import JobView, parse, seconds

NODES = ("n0", "n1", "n2", "n4")


def test_a_job_that_runs_and_one_that_waits():
    text = (
        "12|RUNNING|23:59:10|2026-11-27T02:22:03|n[0-2,4]|None\n"
        "13|PENDING|1-00:00:00|2026-11-27T03:00:00||Resources\n"
        "14|PENDING|UNLIMITED|N/A|(null)|(null)\n"
    )
    assert parse(text) == {
        "12": JobView("12", "RUNNING", "", NODES, "", 86350.0, (NODES,)),
        "13": JobView("13", "PENDING", "Resources", (), "2026-11-27T03:00:00", 86400.0, ((),)),
        "14": JobView("14", "PENDING", "", (), "", float("inf"), ((),)),
    }


def test_components_become_one_by_the_leaders_id():
    text = (
        "21+2|RUNNING|9:00|2026-11-27T02:22:03|n4|None\n"
        "21+0|RUNNING|10:00|2026-11-27T02:22:03|n[0-1]|None\n"
        "21+1|CANCELLED|8:00|2026-11-27T02:22:03|n2|None\n"
    )
    parts = ("n0", "n1"), ("n2",), ("n4",)
    view = JobView("21", "RUNNING", "", NODES, "", 540.0, parts)
    assert parse(text) == {"21": view}


def test_the_reason_of_any_component_tells_why_all_wait():
    text = "3+0|PENDING|1:00|N/A||None\n3+1|PENDING|1:00|2026-01-01T00:00:00||Resources\n"
    view = JobView("3", "PENDING", "Resources", (), "2026-01-01T00:00:00", 60.0, ((), ()))
    assert parse(text)["3"] == view


def test_arrays_headers_errors_and_odd_lines_are_left_out():
    text = "JOBID|STATE\n7_[1-3]|PENDING|1:00|N/A||x\n7_4|RUNNING|1:00|N/A|n1|x\n\nslurm: x\n8|\n"
    assert parse(text) == {}


def test_a_reason_may_contain_the_separator():
    assert parse("5|PENDING|1:00|N/A||a|b (c)")["5"].reason == "a|b (c)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:00", 0), ("1:05", 65), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 183845),
        ("UNLIMITED", float("inf")), ("NOT_SET", None), ("INVALID", None), ("", None),
    ],
)  # fmt: skip
def test_time_left(text, expected):
    assert seconds(text) == expected


def test_nodes_that_make_no_sense_are_none():
    assert parse("5|RUNNING|1:00|N/A|n[0-|None")["5"].nodes == ()


@given(st.text(alphabet="0123456789+_[]|-,:nPENDIG \n", max_size=80))
def test_whatever_squeue_prints_is_no_error(text):
    for job, view in parse(text).items():
        assert job == view.job
        assert not (view.waits and view.over)


@pytest.mark.parametrize("state", ["COMPLETING", "RUNNING", "SIGNALING", "SOMETHING_NEW"])
def test_only_words_of_an_end_mean_an_end(state):
    view = JobView("1", state)
    assert not view.over
    assert not view.waits
