"""When an EW is late, and when it gets work again."""

from __future__ import annotations

import pytest

from tarragon_hpc.datapath.health import Health, Patience

PATIENCE = Patience(factor=8.0, floor_s=0.025, ceiling_s=0.1)


def test_patience_follows_what_was_measured_within_bounds():
    health = Health(PATIENCE)
    assert health.patience("ew0", 8) == 0.1  # nothing known: as long as is allowed
    for _ in range(50):
        health.answered("ew0", 8, 0.001)
    assert health.patience("ew0", 8) == 0.025
    for _ in range(50):
        health.answered("ew0", 8, 0.008)
    assert health.patience("ew0", 8) == pytest.approx(0.064, rel=0.05)
    for _ in range(50):
        health.answered("ew0", 8, 0.5)
    assert health.patience("ew0", 8) == 0.1
    assert health.patience("ew1", 8) == 0.1


def test_more_rows_may_take_longer_in_proportion():
    health = Health(PATIENCE)
    for _ in range(50):
        health.answered("ew0", 8, 0.001)
    assert health.patience("ew0", 64) == pytest.approx(0.064, rel=0.05)
    assert health.patience("ew0", 4) == 0.1  # fewer than ever seen: nothing is known


def test_one_outlier_does_not_make_it_patient():
    health = Health(PATIENCE)
    for _ in range(50):
        health.answered("ew0", 8, 0.004)
    before = health.patience("ew0", 8)
    health.answered("ew0", 8, 3.0)
    assert health.patience("ew0", 8) < 1.5 * before


def test_an_ew_that_keeps_being_late_is_avoided_for_longer_each_time():
    health = Health(PATIENCE)
    waits = []
    now = 0.0
    for _ in range(9):
        assert health.avoid("ew0", now)
        assert not health.avoid("ew0", now)
        assert health.avoided == ("ew0",)
        start = now
        while not health.may_return("ew0", now):
            now += 0.01
        waits.append(now - start)
        health.trust("ew0", now)
        assert health.avoided == ()
    assert waits == pytest.approx([0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0], abs=0.02)
    now += 6.0  # well-behaved for long enough
    health.avoid("ew0", now)
    assert health.may_return("ew0", now)


def test_another_process_of_that_name_starts_afresh():
    health = Health(PATIENCE)
    health.answered("ew0", 8, 0.001)
    health.avoid("ew0", 1.0)
    assert health.known() == {"ew0"}
    health.forget("ew0")
    assert health.known() == frozenset()
    assert health.patience("ew0", 8) == 0.1
