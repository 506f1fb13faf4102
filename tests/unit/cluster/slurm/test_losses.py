"""What the queue says of an allocation's nodes."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.allocation import Allocation
from tarragon_hpc.cluster.slurm.losses import lost, now_has
from tarragon_hpc.cluster.slurm.queue import parse

BEFORE = Allocation("7", (("n0", "n1"), ("n2",)))


def after(text):
    return now_has(BEFORE, parse(text).get("7"))


def test_nodes_that_failed_are_gone_and_a_component_may_lose_its_last():
    left = after("7+0|RUNNING|9:00|N/A|n1|None\n7+1|RUNNING|9:00|N/A||None\n")
    assert left == Allocation("7", (("n1",), ()))
    assert lost(BEFORE, left) == ["n0", "n2"]
    assert after("7+0|RUNNING|9:00|N/A|n[0-1]|None\n").nodes == (("n0", "n1"), ())


@pytest.mark.parametrize(
    "text",
    ["", "7+0|COMPLETED|0:00|N/A||None\n", "7+0|PENDING|9:00|N/A||x\n", "7|RUNNING|1:00|N/A|n[|x"],
)
def test_what_says_nothing_of_nodes_takes_none_away(text):
    assert after(text) == BEFORE
