"""Where the next worker goes, and which nodes get none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.cluster.slurm.bad_nodes import BadNodes, recalled
from tarragon_hpc.cluster.slurm.ladder import Promise, Rung, call_back, climb


def test_a_free_slot_then_a_job_then_patience():
    assert climb(None, pool=False, replacement_jobs=True).rung is Rung.SLOT
    full = "all 4 slots for aw are in use"
    assert climb(full, pool=False, replacement_jobs=True) == (Rung.JOB, full)
    assert climb(full, pool=False, replacement_jobs=False) == (
        Rung.WAIT, f"{full}, and cluster.slurm.replacement_jobs is false",
    )  # fmt: skip
    assert climb(full, pool=True, replacement_jobs=False).rung is Rung.JOB


def test_one_slot_is_promised_to_one_at_a_time():
    waiting = ["ew1", "aw0", "aw1"]
    assert call_back(waiting, set(), None, 0) is None
    assert call_back(waiting, {"aw1", "aw0"}, None, 0) == "aw0"
    assert call_back(waiting, {"aw1"}, Promise("aw0", 0), 59) is None
    assert call_back(waiting, {"aw1"}, Promise("aw0", 0), 60) == "aw1"


def test_a_node_that_loses_workers_is_left_alone():
    bad = BadNodes(3, 600)
    for at in (0, 10):
        bad = bad.died("n1", at)
        assert not bad.reasons
    assert bad.died("n1", 700).reasons == {}  # the others are long ago
    assert bad.died("n1", 20).reasons == {"n1": "3 workers died there within 20 s"}


def test_what_kills_everywhere_is_no_fault_of_nodes():
    bad = BadNodes(3, 600)
    for at in range(100):
        bad = bad.died(f"n{at % 4}", at)
    assert not bad.reasons


def test_the_next_head_of_a_job_avoids_the_same_nodes_and_that_of_another_job_none():
    lines = [
        {"event": "node avoided", "node": "n1", "reason": "down"},
        {"event": "handover began"},
        {"event": "node avoided", "node": "n2", "reason": "drained"},
        {"event": "head changed"},
        {"event": "node avoided", "node": "n2", "reason": "down"},
    ]
    assert recalled(lines) == {"n2": "drained (as an earlier head found)"}
    assert recalled(lines[:2]) == {}


def test_the_first_reason_stays():
    bad = BadNodes(3, 600).blame("n1", "node failure").blame("n1", "other").blame("", "x")
    assert bad.reasons == {"n1": "node failure"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=60))
def test_only_enough_deaths_of_its_own_spoil_a_node(deaths):
    bad, now = BadNodes(3, 100), 0.0
    for node, pause in deaths:
        now += pause
        bad = bad.died(node, now)
        within = [d for d in bad.deaths if now - d.at <= 100]
        assert all(d in within for d in bad.deaths)
    for reason in bad.reasons.values():
        assert int(reason.split()[0]) >= 3
