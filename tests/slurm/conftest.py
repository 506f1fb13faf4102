"""A real Slurm on this machine for the session (slurm/testcluster).

Where it cannot be brought up these tests fail and say what is needed; TARRAGON_NO_SLURM=1 leaves
them out, which the summary of the run then says.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

from slurm.testcluster.cluster import Cluster, missing, sweep
from slurm.testcluster.template import VARIANTS


@pytest.fixture(scope="session")
def clusters(tmp_path_factory):
    """Factory: variant → Cluster; each is brought up once a session."""
    if os.environ.get("TARRAGON_NO_SLURM") == "1":
        pytest.skip("TARRAGON_NO_SLURM=1: nothing was tested on Slurm")
    if (problem := missing()) is not None:
        pytest.fail(f"Slurm: {problem}; to do without: TARRAGON_NO_SLURM=1", pytrace=False)
    sweep()
    made = []

    @cache
    def of(variant):
        made.append(Cluster(tmp_path_factory.mktemp(variant), VARIANTS[variant]))
        made[-1].up(owned=True)
        return made[-1]

    yield of
    for cluster in made:
        cluster.down()


@pytest.fixture(scope="session")
def cluster(clusters):
    """The cluster that most tests share; who breaks something heals it."""
    return clusters("default")
