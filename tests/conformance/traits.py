"""Which worlds a test is about."""

from __future__ import annotations

import pytest

from tests.conformance.worlds import WORLDS


def cases(**traits):
    """Parameters for the fixture `world`: the worlds with these traits."""
    return [
        pytest.param(name, marks=pytest.mark.native if world.native else ())
        for name, world in WORLDS.items()
        if all(getattr(world, trait) == value for trait, value in traits.items())
    ]


def only(**traits):
    """Decorates a test that is about worlds with these traits only."""
    return pytest.mark.parametrize("world", cases(**traits), indirect=True)
