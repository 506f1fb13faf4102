"""Which worlds a test is about."""

from __future__ import annotations

import pytest

from tests.conformance.worlds import WORLDS


def cases(worlds, **traits):
    """Parameters for a fixture: the names of the worlds with these traits."""
    return [
        pytest.param(name, marks=pytest.mark.native if world.native else ())
        for name, world in worlds.items()
        if all(getattr(world, trait) == value for trait, value in traits.items())
    ]


def only(**traits):
    """Decorates a test that is about those worlds only that have these traits."""
    return pytest.mark.parametrize("world", cases(WORLDS, **traits), indirect=True)
