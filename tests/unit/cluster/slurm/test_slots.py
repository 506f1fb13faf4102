"""Where workers go in an allocation."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.allocation import Allocation
from tarragon_hpc.cluster.slurm.resources import Component
from tarragon_hpc.cluster.slurm.slots import (
    Slot,
    Use,
    choose,
    choose_node,
    no_slot,
    slots_of,
)
from tarragon_hpc.config import load_config
from tarragon_hpc.ids import Role


def component(number, roles, nodes, slots):
    config = load_config(
        {"model": {"path": "x"}, "cluster": {"slurm": {"nodes": {"slots_per_node": slots}}}}
    )
    return Component(f"c{number}", number, frozenset(roles), nodes, 0, config.cluster.slurm.nodes)


@pytest.fixture
def single():
    """Three nodes of two slots."""
    return slots_of(Allocation("1", (("n0", "n1", "n2"),)), [component(0, Role, 3, 2)])


@pytest.fixture
def het():
    """A node for stores, two for AWs, one of two slots for EWs."""
    parts = [
        component(0, {Role.CS}, 1, 1),
        component(1, {Role.AW}, 2, 1),
        component(2, {Role.EW}, 1, 2),
    ]
    return slots_of(Allocation("1", (("n0",), ("n1", "n2"), ("n3",))), parts)


def placed(slots, *workers):
    for worker in workers:
        choice = choose(slots, worker)
        slots = slots.take(choice.slot, f"{worker}.1", Use.WORKER)
    return slots


def where(slots):
    return {held.name: slot.node for slot, held in slots.held.items()}


def test_workers_are_spread_over_nodes_and_over_nodes_by_role(single):
    found = where(placed(single, "aw0", "aw1", "ew0", "ew1", "ew2"))
    assert found == {"aw0.1": "n0", "aw1.1": "n1", "ew0.1": "n2", "ew1.1": "n0", "ew2.1": "n1"}


def test_roles_stay_in_their_components(het):
    found = where(placed(het, "aw0", "ew0", "ew1", "aw1"))
    assert found == {"aw0.1": "n1", "aw1.1": "n2", "ew0.1": "n3", "ew1.1": "n3"}
    full = placed(het, "aw0", "aw1")
    assert choose(full, "aw2") is None
    assert no_slot(full, "aw2") == "all 2 slots for aw are in use"


def test_a_replacement_prefers_a_warm_spare_on_another_node(single):
    slots = placed(single, "aw0", "ew0", "ew1")
    dead = Slot(0, "n0", 0)
    slots = slots.free(dead, "aw0.1")
    slots = slots.take(Slot(0, "n0", 1), "spare0", Use.WARM)
    slots = slots.take(Slot(0, "n1", 1), "spare1", Use.LOADING)
    slots = slots.take(Slot(0, "n2", 1), "spare2", Use.WARM)
    assert choose(slots, "aw0")[:2] == (Slot(0, "n2", 1), "spare2")
    slots = slots.free(Slot(0, "n2", 1), "spare2")
    assert choose(slots, "aw0").spare == "spare1"
    slots = slots.free(Slot(0, "n1", 1), "spare1").take(Slot(0, "n1", 1), "ew2.1", Use.WORKER)
    assert choose(slots, "aw0")[:2] == (Slot(0, "n2", 1), "")
    slots = slots.take(Slot(0, "n2", 1), "ew3.1", Use.WORKER)
    # Nothing is left elsewhere: the node where it died, and there the spare.
    choice = choose(slots, "aw0")
    assert choice[:2] == (Slot(0, "n0", 1), "spare0")
    assert "the same node as before, n0" in choice.reason


def test_an_ew_does_not_wait_for_the_imports_of_an_aw(single):
    slots = single.spoil("n2", "x").take(Slot(0, "n0", 0), "spare0", Use.LOADING)
    assert choose(slots, "aw0").spare == "spare0"
    assert choose(slots, "ew0")[:2] == (Slot(0, "n0", 1), "")


def test_who_must_be_started_afresh_leaves_the_spares_alone(single):
    slots = single.take(Slot(0, "n0", 0), "spare0", Use.WARM)
    assert choose(slots, "aw0", warm=False)[:2] == (Slot(0, "n0", 1), "")
    for slot in slots.order[1:]:
        slots = slots.take(slot, f"ew{slot}.1", Use.WORKER)
    assert choose(slots, "aw0", warm=False).spare == "spare0"


def test_bad_nodes_and_slots_that_may_still_be_in_use_are_left_out(single):
    slots = single.spoil("n0", "node failure on n0").spoil("n0", "again")
    assert slots.bad == {"n0": "node failure on n0"}
    slots = placed(slots, "aw0", "ew0", "ew1")
    rest = next(slot for slot in slots.usable if slot not in slots.held)
    slots = slots.take(rest, "ew7.1", Use.REST)
    assert choose(slots, "ew2") is None
    assert no_slot(slots, "ew2") == (
        "no slot for ew is left: 4 of 6 are in use, n0 is out (node failure on n0)"
    )
    assert choose(slots.free(rest, "ew7.1"), "ew2").slot == rest


def test_only_who_holds_a_slot_frees_it(single):
    slot = single.order[0]
    slots = single.take(slot, "ew0.2", Use.WORKER)
    assert slots.free(slot, "spare0") is slots
    assert slots.of("ew0.2") == slot
    assert slots.free(slot, "ew0.2").held == {}


def test_a_node_that_left_the_allocation_is_bad_and_its_workers_are_still_known(single):
    slots = placed(single, "aw0", "ew0", "ew1")
    fewer = slots_of(Allocation("1", (("n0", "n2"),)), [component(0, Role, 2, 2)], slots)
    assert fewer.bad == {"n1": "it left the allocation"}
    assert where(fewer) == where(slots)
    assert all(slot.node != "n1" for slot in fewer.order)
    assert fewer.last == slots.last


def test_stores_are_spread_and_take_no_slot(single, het):
    assert choose_node(single, [], "cs0").name == "n0"
    assert choose_node(single, ["n0"], "cs1").name == "n1"
    again = single.take(single.order[0], "cs0.1", Use.WORKER)
    assert choose_node(again, [], "cs0").name == "n1"
    assert choose_node(het, ["n0"], "cs1").name == "n0"
    assert choose_node(het.spoil("n0", "lost"), [], "cs0") is None
