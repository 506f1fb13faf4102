"""Which failures are masked: against trying every one of them, and in words."""

from __future__ import annotations

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.orchestrator import events as ev
from tarragon_hpc.orchestrator.coverage import coverage, coverage_gap, coverage_of
from tarragon_hpc.orchestrator.rules import Rules
from tests.unit.orchestrator.conftest import Scenario


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.sets(st.integers(0, n - 1)), min_size=0, max_size=6)
        )
    )
)
def test_counting_agrees_with_trying(case):
    experts, sets = case
    holds = {f"ew{n}": held for n, held in enumerate(sets)}
    everything = set().union(*sets)
    found = coverage(experts, holds)

    def masked(*lost: str) -> bool:
        return everything == set().union(*(h for w, h in holds.items() if w not in lost))

    assert found.masked_single == tuple(w for w in holds if masked(w))
    pairs = list(itertools.combinations(holds, 2))
    assert found.masked_double == sum(masked(*pair) for pair in pairs)
    assert found.masked_double + found.load_double + found.lost_double == len(pairs)
    singles = (*found.masked_single, *found.load_single, *found.lost_single)
    assert sorted(singles) == sorted(holds)
    assert found.missing == tuple(e for e in range(experts) if e not in everything)
    assert found.lines


def test_two_ews_that_shadow_each_other():
    both = {"ew0": {0, 1, 2, 3}, "ew1": {0, 1, 2, 3}}
    assert coverage(4, both).lines == (
        "every expert is held by at least 2 of 2 live EWs",
        "masked at once: the loss of ew0-1; 0 of 1 pairs",
        "service lost until a replacement serves: no single loss; 1 of 1 pairs",
    )


def test_without_shadows_a_loss_costs_a_load_or_more():
    apart = {"ew0": {0, 1}, "ew1": {2}, "ew2": {3}}
    found = coverage(4, apart)
    assert (found.replicas_min, found.load_single, found.load_double) == (1, tuple(apart), 3)
    assert found.lines == (
        "every expert is held by at least 1 of 3 live EWs",
        "a load from disk, requests wait meanwhile: the loss of ew0-2 "
        "(only there: ew0: 0-1; ew1: 2; ew2: 3); 3 of 3 pairs",
    )
    tight = coverage(4, apart, capacity=2)
    assert (tight.load_single, tight.lost_single) == (tuple(apart), ())
    assert (tight.load_double, tight.lost_double) == (0, 3)
    for on_missing, words in [("mask", "answered without"), ("wait", "requests wait until")]:
        found = coverage(4, apart, on_missing)
        assert found.lost_single == tuple(apart)
        assert words in found.lines[1]


def test_what_is_missing_already_is_said_first():
    assert coverage(4, {"ew0": {0, 1}}).lines[0] == "no live EW holds experts 2-3"
    assert coverage(2, {}).lines == ("no live EW holds experts 0-1",)


def test_thousands_of_ews_are_no_matter():
    holds = {f"ew{n}": {n % 512, (n + 1) % 512} for n in range(4096)}
    begun = time.process_time()
    found = coverage(512, holds)
    assert found.masked_double == 4096 * 4095 // 2
    assert time.process_time() - begun < 1


def test_the_coverage_of_a_run_follows_its_workers():
    scenario = Scenario(Rules(shadows=1), shadows=(0, 1, 2)).running()
    assert coverage_of(scenario.state).masked_single == ("ew0",)
    assert coverage_of(scenario.state).load_single == ("ew1",)
    assert coverage_gap(scenario.state) == (0, 0)
    scenario.happen(ev.WorkerExited, "ew1", 1, "killed by SIGKILL")
    assert coverage_gap(scenario.state) == (4, 1)
    assert coverage_of(scenario.state).missing == (3,)


def test_plain_data():
    plain = coverage(2, {"ew0": {0, 1}}).plain()
    assert plain["lost_single"] == ["ew0"]
    assert isinstance(plain["lines"], list)


def lines_of(scenario: Scenario) -> str:
    return "\n".join(coverage_of(scenario.state).lines)


def test_what_the_loss_of_an_aw_or_a_store_costs_is_said():
    bare = lines_of(Scenario().running())
    assert bare.endswith(
        "the loss of an AW: other AWs go on with its requests, all their tokens are computed anew, "
        "since there are no checkpoint stores"
    )
    scenario = Scenario(Rules(replicas=1), stores=1).running()
    assert lines_of(scenario).endswith(
        "the loss of an AW: other AWs go on with its requests, restored from checkpoint stores; "
        "about one token of each is computed anew\n"
        "the loss of a CS: no request notices; the AWs copy their KV again, to its replacement, "
        "and what an AW loses before that is computed anew"
    )
    scenario.happen(ev.WorkerExited, "cs0", 1, "killed by SIGKILL")
    scenario.happen(ev.WorkerExited, "aw0", 1, "killed by SIGKILL")
    assert (
        "the loss of an AW: its requests wait for its replacement, all their tokens are computed "
        "anew, since no checkpoint store serves"
    ) in lines_of(scenario)
    two = lines_of(Scenario(Rules(replicas=1), stores=2).running())
    assert "copy their KV again, to the other stores, and" in two
    double = lines_of(Scenario(Rules(replicas=2), stores=2).running())
    assert "no request notices; another one has the same KV" in double
