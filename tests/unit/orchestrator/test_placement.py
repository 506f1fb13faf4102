"""Experts on EWs: every expert once, loads alike, shadows elsewhere and spread."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.config import ExpertsConfig
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.orchestrator.placement import place


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


def test_a_long_list_of_missing_experts_is_cut_short():
    with pytest.raises(ConfigError, match=r"0, 1, 2, 3, 4, 5, 6, 7, … \(63 in all\)"):
        place(64, ExpertsConfig(workers=1, placement={"ew0": [63]}))
