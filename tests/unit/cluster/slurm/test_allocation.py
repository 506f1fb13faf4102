"""The nodes of a job, from its environment and from squeue."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.allocation import Allocation, of_environment, of_queue
from tarragon_hpc.errors import ClusterError

HET = {
    "SLURM_JOB_ID": "19",
    "SLURM_JOB_NODELIST": "n0",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n0",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "n[1-2]",
    "SLURM_JOB_ID_HET_GROUP_0": "19",
    "SLURM_JOB_ID_HET_GROUP_1": "20",
}


def test_a_plain_job():
    found = of_environment({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]"})
    assert found == Allocation("7", (("n0", "n1"),))
    assert not found.het
    assert found.listed_as == "7"
    assert found.has("n1")
    assert not found.has("n2")


def test_a_heterogeneous_job():
    found = of_environment(HET)
    assert found == Allocation("19", (("n0",), ("n1", "n2")), ("19", "20"))
    assert found.het
    assert found.listed_as == "19,20"


def test_outside_of_a_job():
    assert of_environment({"SLURM_CONF": "/etc/slurm.conf"}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_JOB_ID": "x"},
        {"SLURM_HET_SIZE": "many"},
        {"SLURM_JOB_NODELIST_HET_GROUP_1": ""},
        {"SLURM_JOB_NODELIST_HET_GROUP_1": "n[1"},
    ],
)
def test_an_environment_that_makes_no_sense(change):
    with pytest.raises(ClusterError):
        of_environment({**HET, **change})


def test_what_the_queue_says():
    assert of_queue("7", "7|7|n[0,2]\n") == Allocation("7", (("n0", "n2"),), ("7",))
    text = "19+0|19|n0\n19+2|21|\n19+1|20|n[1-2]\n190|190|n5\n"
    assert of_queue("19", text) == Allocation("19", (("n0",), ("n1", "n2"), ()), ("19", "20", "21"))
    assert of_queue("7", "7|7|\n") is None
    assert of_queue("7", "") is None
