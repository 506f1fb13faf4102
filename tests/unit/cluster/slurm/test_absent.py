"""Which of the workers of an earlier head Slurm does not know any more; where a standby goes."""

from __future__ import annotations

from tarragon_hpc.cluster.inheritance import Place
from tarragon_hpc.cluster.slurm.absent import missing
from tarragon_hpc.cluster.slurm.allocation import Allocation
from tarragon_hpc.cluster.slurm.standby_head import place_for
from tarragon_hpc.ids import Incarnation


def place(worker: str, step: str) -> Place:
    return Place(Incarnation(worker, 2), step, "n1", "")


def test_a_step_that_is_not_listed_is_gone():
    listed = {"7.0": "ew0.2", "7.4": "spare1", "7.extern": "extern"}
    places = [place("ew0", "7.0"), place("ew1", "7.1"), place("aw0", "7.4")]
    assert missing(places, listed) == [Incarnation("ew1", 2)]
    # In a heterogeneous job Slurm lists the component's id, and tells the step the leader's.
    assert missing([place("ew0", "6.0")], listed) == []


def test_without_a_known_step_its_name_tells():
    listed = {"7.0": "ew0.2"}
    assert missing([place("ew0", ""), place("ew1", "")], listed) == [Incarnation("ew1", 2)]
    assert missing([place("ew0", "7.3")], {}) == [Incarnation("ew0", 2)]


def test_a_standby_is_on_another_node_of_the_heads_component_if_there_is_one():
    allocation = Allocation("7", (("n0", "n1"), ("n2",)))
    assert place_for(allocation, "n0", ()) == (0, "n1")
    assert place_for(allocation, "n1", ()) == (0, "n0")
    assert place_for(allocation, "n0", {"n1"}) == (1, "n2")
    assert place_for(allocation, "", ()) == (0, "n0")
    assert place_for(Allocation("7", (("n0",),)), "n0", ()) is None
