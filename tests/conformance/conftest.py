"""The fixtures of the transport suite."""

from __future__ import annotations

import pytest

from tests.conformance import peer
from tests.conformance.pairs import Pair
from tests.conformance.traits import cases
from tests.conformance.worlds import WORLDS


@pytest.fixture(params=cases())
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
