"""The fixtures of the transport suite."""

from __future__ import annotations

import contextlib

import pytest

from tests.conformance import peer
from tests.conformance.pairs import Pair
from tests.conformance.traits import cases
from tests.conformance.world_faulty import struck
from tests.conformance.worlds import PLAIN, WORLDS


@pytest.fixture(params=cases(WORLDS))
def world(request, tmp_path):
    made = WORLDS[request.param](str(tmp_path / "run"))
    yield made
    made.close()


@pytest.fixture
def reply_to():
    """What serving peers answer."""
    return peer.reply_to


@pytest.fixture
def pair(world):
    return Pair(world)


@pytest.fixture(params=cases(PLAIN))
def faulty(request, tmp_path):
    """Makes worlds of each transport, one at a time; everybody has the faults of a plan."""
    made = contextlib.ExitStack()

    def make(plan):
        made.close()
        world = struck(PLAIN[request.param], plan)(str(tmp_path / "run"))
        made.callback(world.close)
        return world

    with made:
        yield make
