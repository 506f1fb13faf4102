"""Hosts that are network namespaces of this machine.

Where they cannot be made these tests fail and say what is needed; TARRAGON_NO_NETNS=1 leaves them
out, which the summary of the run then says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tarragon_hpc.bench.hosts import Hosts, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def make_hosts() -> Iterator[Callable[..., Hosts]]:
    """Factory: names → Hosts; those of one module at a time."""
    if os.environ.get("TARRAGON_NO_NETNS") == "1":
        pytest.skip("TARRAGON_NO_NETNS=1: nothing was tested across hosts")
    problem = why_not()
    if problem is not None:
        pytest.fail(f"network namespaces: {problem}; to do without: TARRAGON_NO_NETNS=1")
    made: list[Hosts] = []

    def make(*names: str) -> Hosts:
        made.append(Hosts(names))
        return made[-1]

    yield make
    for hosts in made:
        hosts.close()
