"""Where interrupted sequences go, in which order, and when they are given up: pure rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.gateway.balance import choose_worker
from tarragon_hpc.gateway.failover import (
    MAX_FRUITLESS,
    is_hopeless,
    is_overdue,
    next_look_s,
    place,
    retry_at,
)
from tarragon_hpc.gateway.state import SequenceState
from tarragon_hpc.ids import Incarnation
from tarragon_hpc.wire.common import SamplingSpec

AW = [Incarnation(f"aw{i}", 1) for i in range(11)]


def sequence(name="r", *, arrived=None, opened=0.0, left=None, waits=0.0, fruitless=1):
    state = SequenceState(name, [1], SamplingSpec(max_tokens=8), opened=opened)
    state.log.arrived = arrived
    state.left, state.waits, state.fruitless = left, waits, fruitless
    return state


def placed(*args):
    return [(state.request, who.worker) for state, who in place(*args)]


def test_the_least_loaded_worker_is_chosen_and_ties_go_to_the_lowest_number():
    assert choose_worker({AW[10]: 1, AW[2]: 1, AW[3]: 2}) == AW[2]
    assert choose_worker({AW[2]: 3, AW[10]: 1}) == AW[10]
    assert choose_worker({}) is None


def test_the_longest_gap_comes_first_and_the_load_is_spread():
    waiting = [
        sequence("c", arrived=3.0),
        sequence("a", opened=1.0),
        sequence("d", arrived=9.0, opened=0.0),
        sequence("b", arrived=2.0),
    ]
    load = {AW[1]: 2, AW[2]: 0}
    assert placed(waiting, load, 10.0) == [
        ("a", "aw2"), ("b", "aw2"), ("c", "aw1"), ("d", "aw2"),
    ]  # fmt: skip
    assert load == {AW[1]: 2, AW[2]: 0}
    assert placed(waiting, {}, 10.0) == []


def test_back_to_the_same_worker_only_where_no_other_serves_and_later_each_time():
    state = sequence(left=AW[0], waits=100.0, fruitless=1)
    assert placed([state], {AW[0]: 0, AW[1]: 50}, 100.0) == [("r", "aw1")]
    assert placed([state], {AW[0]: 0}, 100.05) == []
    assert placed([state], {AW[0]: 0}, 100.11) == [("r", "aw0")]
    # Another process in the same place is another worker.
    assert placed([state], {Incarnation("aw0", 2): 0}, 100.0) == [("r", "aw0")]
    waits = [retry_at(sequence(fruitless=n)) for n in range(MAX_FRUITLESS)]
    assert waits == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.8])


def test_what_interrupts_again_and_again_is_given_up():
    assert [is_hopeless(sequence(fruitless=n)) for n in (0, 1, 4, 5, 6)] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_when_there_is_something_to_decide():
    patient = sequence(waits=100.0)
    assert not is_overdue(patient, 109.9, 10.0)
    assert is_overdue(patient, 110.0, 10.0)
    assert next_look_s([], {}, 100.0, 10.0) is None
    assert next_look_s([patient], {}, 103.0, 10.0) == 7.0
    assert next_look_s([patient], {}, 200.0, 10.0) == 0.0
    back = sequence(left=AW[0], waits=102.0)
    assert next_look_s([patient, back], {AW[0]: 1}, 102.0, 10.0) == pytest.approx(0.1)
    assert next_look_s([patient, back], {}, 102.0, 10.0) == 8.0


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(-1, 3)), max_size=30),
    st.dictionaries(st.integers(0, 3), st.integers(0, 20)),
)
def test_placing_is_fair_whatever_it_is_asked(sequences, running):
    load = {AW[i]: n for i, n in running.items()}
    waiting = [
        sequence(str(i), arrived=arrived, left=AW[left] if left >= 0 else None, waits=100.0)
        for i, (arrived, left) in enumerate(sequences)
    ]
    result = place(waiting, load, 100.0)
    times = [state.progressed for state, _ in result]
    assert times == sorted(times)
    for state, who in result:
        others = load.keys() - {state.left}
        assert who in others
        assert load[who] == min(load[other] for other in others)
        load[who] += 1
    done = {state.request for state, _ in result}
    for state in waiting:
        assert (state.request in done) == bool(load.keys() - {state.left})
