"""Another set of EWs: everything placed again, and as little moved as possible."""

from __future__ import annotations

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.config import ExpertsConfig
from tarragon_hpc.orchestrator.placement import Placement, place
from tarragon_hpc.orchestrator.rearrange import rearrange
from tarragon_hpc.orchestrator.rules import Rules


def placed(placement: Placement) -> list[int]:
    return sorted(chain(*placement.primaries.values()))


def check(placement: Placement, rules: Rules) -> None:
    copies = min(rules.shadows, len(placement.primaries) - 1)
    for holders in placement.candidates():
        assert len(set(holders)) == len(holders)
        assert len(holders) <= 1 + copies
    for worker in placement.primaries:
        held = (*placement.primaries[worker], *placement.shadows[worker])
        assert len(set(held)) == len(held)
        assert rules.capacity is None or len(held) <= rules.capacity


@st.composite
def changes(draw):
    workers = draw(st.integers(1, 8))
    experts = draw(st.integers(workers, 30))
    shadows = draw(st.integers(0, workers - 1))
    few = -(-experts // workers)
    capacity = draw(st.none() | st.integers(few, 2 * experts))
    frequencies = draw(st.none() | st.lists(st.floats(0, 9), min_size=experts, max_size=experts))
    kept = draw(st.sets(st.integers(0, workers - 1)))
    added = draw(st.integers(0, experts - workers))
    names = [f"ew{n}" for n in sorted(kept)] + [f"ew{workers + n}" for n in range(added)]
    rules = Rules("load", shadows, capacity, frequencies)
    config = ExpertsConfig(
        workers=workers, shadows=shadows, memory=capacity, frequencies=frequencies
    )
    return place(experts, config, 1), rules, names


@given(changes())
def test_everything_that_fits_is_placed_and_nothing_moves_needlessly(change):
    old, rules, workers = change
    new = rearrange(old, workers, rules)
    assert list(new.primaries) == workers
    check(new, rules)
    room = len(workers) * (old.experts if rules.capacity is None else rules.capacity)
    assert len(placed(new)) == len(set(placed(new))) == min(room, old.experts)
    newcomers = [w for w in workers if w not in old.primaries]
    for worker in workers:
        if worker in old.primaries:
            lost = set(old.primaries[worker]) - set(new.primaries[worker])
            assert lost <= set(chain(*(new.primaries[n] for n in newcomers)))
    if not newcomers and room >= old.experts and rules.capacity is None:
        for worker in workers:
            assert set(old.shadows[worker]) <= new.of(worker) or rules.shadows >= len(workers)
    assert rearrange(new, workers, rules) == new


@given(changes())
def test_who_is_new_gets_an_even_share(change):
    old, rules, workers = change
    new = rearrange(old, workers, rules)
    if workers and set(old.primaries) <= set(workers):
        for worker in set(workers) - set(old.primaries):
            assert len(new.primaries[worker]) == old.experts // len(workers)


def test_the_experts_of_a_lost_ew_go_to_those_that_have_them():
    old = place(8, ExpertsConfig(workers=4, shadows=1))
    new = rearrange(old, ["ew0", "ew2", "ew3"], Rules(shadows=1))
    for expert in old.primaries["ew1"]:
        (shadow,) = old.candidates()[expert][1:]
        assert expert in new.primaries[shadow]
    assert all(len(holders) == 2 for holders in new.candidates())


def test_what_an_ew_holds_anyway_counts():
    old = place(4, ExpertsConfig(workers=4))
    new = rearrange(old, ["ew0", "ew1", "ew2"], Rules(), holds={"ew2": {2, 3}})
    assert new.primaries == {"ew0": (0,), "ew1": (1,), "ew2": (2, 3)}


def test_shadows_make_room_for_primaries_the_coldest_first():
    rules = Rules(shadows=1, capacity=3, frequencies=[9.0, 1, 1, 1, 5, 1])
    old = Placement(
        6,
        {"ew0": (0, 1), "ew1": (2, 3), "ew2": (4, 5)},
        {"ew0": (4,), "ew1": (0,), "ew2": (2,)},
    )
    new = rearrange(old, ["ew0", "ew1"], rules)
    assert placed(new) == list(range(6))
    assert new.shadows == {"ew0": (), "ew1": ()}


def test_nobody_is_left_or_not_enough():
    old = place(4, ExpertsConfig(workers=2))
    assert rearrange(old, [], Rules()) == Placement(4, {}, {})
    small = rearrange(old, ["ew0"], Rules(capacity=3))
    assert len(small.primaries["ew0"]) == 3
    assert sorted(map(len, small.candidates())) == [0, 1, 1, 1]
    assert placed(rearrange(small, ["ew0", "ew2"], Rules(capacity=3))) == [0, 1, 2, 3]
