"""Experts on EWs: every expert once, loads alike, shadows elsewhere and spread."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.config import ExpertsConfig
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.orchestrator.placement import place
from tarragon_hpc.orchestrator.rules import Rules, rules_for


@st.composite
def shapes(draw):
    workers = draw(st.integers(1, 9))
    experts = draw(st.integers(workers, 40))
    shadows = draw(st.integers(0, workers - 1))
    return experts, workers, shadows


@given(shapes())
def test_balanced_placement(shape):
    experts, workers, shadows = shape
    placement = place(experts, ExpertsConfig(workers=workers, shadows=shadows))
    assert sorted(chain(*placement.primaries.values())) == list(range(experts))
    sizes = [len(e) for e in placement.primaries.values()]
    assert max(sizes) - min(sizes) <= 1
    totals = [len(placement.primaries[w]) + len(placement.shadows[w]) for w in placement.primaries]
    assert max(totals) - min(totals) <= 2 + shadows
    candidates = placement.candidates()
    assert len(candidates) == experts
    for expert, holders in enumerate(candidates):
        assert len(holders) == 1 + shadows
        assert len(set(holders)) == len(holders)
        assert expert in placement.primaries[holders[0]]
        assert all(expert in placement.shadows[h] for h in holders[1:])


@given(shapes())
def test_the_load_of_a_lost_ew_falls_on_all_the_others(shape):
    experts, workers, shadows = shape
    placement = place(experts, ExpertsConfig(workers=workers, shadows=shadows))
    for lost, own in placement.primaries.items():
        inherited = [
            sum(expert in placement.shadows[heir] for expert in own)
            for heir in placement.primaries
            if heir != lost
        ]
        if inherited:
            assert max(inherited) - min(inherited) <= 1


def test_uneven_placement_as_configured():
    config = ExpertsConfig(workers=2, shadows=1, placement={"ew0": [2, 0, 3], "ew1": [1]})
    placement = place(4, config)
    assert placement.primaries == {"ew0": (0, 2, 3), "ew1": (1,)}
    assert placement.shadows == {"ew0": (1,), "ew1": (0, 2, 3)}
    assert placement.candidates() == (
        ("ew0", "ew1"),
        ("ew1", "ew0"),
        ("ew0", "ew1"),
        ("ew0", "ew1"),
    )


def test_an_ew_may_hold_shadows_only():
    placement = place(2, ExpertsConfig(workers=2, shadows=1, placement={"ew0": [0, 1]}))
    assert placement.primaries == {"ew0": (0, 1), "ew1": ()}
    assert placement.shadows == {"ew0": (), "ew1": (0, 1)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"workers": 5}, "experts.workers: 5: more EWs than the model's 4 experts"),
        (
            {"workers": 2, "shadows": 2},
            "experts.shadows: 2: shadows sit on other EWs; at most experts.workers - 1 = 1",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0], "ew2": [1, 2, 3]}},
            "experts.placement: ew2: unknown EW; experts.workers is 2, so: ew0, ew1",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0, 1, 4], "ew1": [2, 3]}},
            "experts.placement.ew0: 4: the model's experts are 0..3",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0, -1], "ew1": [2, 3]}},
            "experts.placement.ew0: -1: the model's experts are 0..3",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0, 1], "ew1": [1, 2, 3]}},
            "experts.placement.ew1: 1: already on ew0; replicas are made by experts.shadows",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0], "ew1": [3]}},
            "experts.placement: no EW holds expert 1, 2",
        ),
        (
            {"workers": 2, "placement": {"ew0": [0, 1, 2, 3]}},
            "experts.placement: ew1: holds no expert; give it one or start fewer EWs",
        ),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(config, message):
    with pytest.raises(ConfigError) as error:
        place(4, ExpertsConfig(**config))
    assert str(error.value) == message


def test_shadows_fill_the_memory_and_the_hottest_come_first():
    config = ExpertsConfig(workers=2, shadows=1, memory=350, frequencies=[1, 9, 1, 7])
    placement = place(4, config, expert_bytes=100)
    assert placement.shadows == {"ew0": (3,), "ew1": (1,)}
    assert [len(held) for held in placement.primaries.values()] == [2, 2]


def test_everybody_gets_a_first_shadow_before_anybody_a_second():
    config = ExpertsConfig(workers=4, shadows=3, memory=3, frequencies=[4.0, 3, 2, 1])
    copies = [len(holders) for holders in place(4, config, 1).candidates()]
    assert copies == [3, 3, 3, 3]
    config = config.model_copy(update={"memory": 2})
    assert [len(holders) for holders in place(4, config, 1).candidates()] == [2, 2, 2, 2]


@st.composite
def tight(draw):
    experts, workers, shadows = draw(shapes())
    memory = draw(st.integers(-(-experts // workers), 2 * experts))
    some = st.none() | st.lists(st.floats(0, 9), min_size=experts, max_size=experts)
    nodes = draw(st.lists(st.sampled_from(["n0", "n1", None]), min_size=workers, max_size=workers))
    config = ExpertsConfig(workers=workers, shadows=shadows, memory=memory, frequencies=draw(some))
    return experts, config, {f"ew{n}": node for n, node in enumerate(nodes)}


@given(tight())
def test_memory_is_never_exceeded_and_never_wasted(shape):
    experts, config, nodes = shape
    placement = place(experts, config, 1, nodes)
    candidates = placement.candidates()
    held = {w: placement.of(w) for w in placement.primaries}
    assert all(len(e) <= config.memory for e in held.values())
    assert sum(map(len, held.values())) == sum(map(len, candidates))
    roomy = [w for w in held if len(held[w]) < config.memory]
    for expert, holders in enumerate(candidates):
        assert len(set(holders)) == len(holders) <= 1 + config.shadows
        if len(holders) <= config.shadows:
            assert all(expert in held[w] for w in roomy)


def test_a_shadow_goes_to_another_node_if_there_is_one_with_room():
    nodes = {"ew0": "a", "ew1": "a", "ew2": "b", "ew3": "b"}
    placement = place(8, ExpertsConfig(workers=4, shadows=1), nodes=nodes)
    assert {len({nodes[h] for h in holders}) for holders in placement.candidates()} == {2}
    one = dict.fromkeys(nodes, "a")
    assert place(8, ExpertsConfig(workers=4, shadows=1), nodes=one) == place(
        8, ExpertsConfig(workers=4, shadows=1)
    )


def test_frequencies_balance_the_load_and_not_only_the_numbers():
    config = ExpertsConfig(workers=2, frequencies=[8.0, 8, 1, 1])
    assert place(4, config).primaries == {"ew0": (0, 2), "ew1": (1, 3)}
    config = ExpertsConfig(workers=2, frequencies=[8.0, 1, 8, 1, 0])
    sizes = [len(held) for held in place(5, config).primaries.values()]
    assert sorted(sizes) == [2, 3]
    assert place(5, config).primaries["ew0"][0] == 0
    assert 2 in place(5, config).primaries["ew1"]


def test_memory_that_cannot_hold_the_primaries_is_a_mistake():
    with pytest.raises(ConfigError) as error:
        place(5, ExpertsConfig(workers=2, memory=250), expert_bytes=100)
    assert str(error.value) == (
        "experts.memory: 250: ew0 answers for 3 experts of 100 bytes, and only 2 fit; "
        "at least 300, or more experts.workers"
    )


def test_frequencies_are_one_number_per_expert():
    with pytest.raises(ConfigError) as error:
        rules_for(3, ExpertsConfig(frequencies=[1.0, 2.0]))
    assert str(error.value) == (
        "experts.frequencies: 2 numbers; the model has 3 experts, one number each"
    )
    assert rules_for(2, ExpertsConfig(shadows=1, memory=7), 3) == Rules("load", 1, 2)


def test_a_long_list_of_missing_experts_is_cut_short():
    with pytest.raises(ConfigError, match=r"0, 1, 2, 3, 4, 5, 6, 7, … \(63 in all\)"):
        place(64, ExpertsConfig(workers=1, placement={"ew0": [63]}))
