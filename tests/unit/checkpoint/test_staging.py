"""Staging memory: areas never overlap, and all of it can be had again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.checkpoint.staging import ALIGN, Area, Staging

SIZE = 64 * ALIGN


@given(st.lists(st.one_of(st.integers(1, 20 * ALIGN), st.integers(-10, -1)), max_size=60))
def test_areas_are_apart_and_aligned_and_all_comes_back(actions):
    """Positive: reserve so many bytes; negative: give one of the areas back."""
    staging = Staging(SIZE)
    lent = []
    for action in actions:
        if action < 0:
            if lent:
                staging.release(lent.pop(action % len(lent)))
            continue
        area = staging.reserve(action)
        if area is None:
            gaps = sorted((a.start, a.start + a.nbytes) for a in lent)
            ends = [0, *(end for _, end in gaps)]
            starts = [*(start for start, _ in gaps), SIZE]
            assert max(b - a for a, b in zip(ends, starts, strict=True)) < action
            continue
        assert area.start % ALIGN == 0
        assert area.nbytes >= action
        assert area.start + area.nbytes <= SIZE
        for other in lent:
            assert area.start + area.nbytes <= other.start or (
                other.start + other.nbytes <= area.start
            )
        lent.append(area)
    assert staging.used == sum(a.nbytes for a in lent)
    for area in lent:
        staging.release(area)
    assert staging.used == 0
    assert staging.reserve(SIZE) == Area(0, SIZE)


def test_the_memory_is_aligned_and_all_of_it_usable():
    staging = Staging(1000)
    assert staging.memory.ctypes.data % ALIGN == 0
    assert len(staging.memory) == 1000


def test_the_lowest_free_memory_is_used_first():
    staging = Staging(SIZE)
    first, second = staging.reserve(ALIGN), staging.reserve(ALIGN)
    staging.release(first)
    assert staging.reserve(ALIGN) == first
    staging.release(second)


def test_giving_back_what_is_not_lent_is_an_error():
    staging = Staging(SIZE)
    area = staging.reserve(10)
    staging.release(area)
    with pytest.raises(ValueError, match="not in list"):
        staging.release(area)
