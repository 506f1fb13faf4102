"""Rows of which every holder is late, in one way or another."""

from __future__ import annotations

from tarragon_hpc.datapath.report import Suspicion


def test_of_two_that_are_avoided_the_one_that_is_merely_slow_is_asked(sim, batch):
    """Whoever has not answered for longer does not get the rows back, nor the next ones."""
    sim.ew("ew0").mode = "mute"
    slow = sim.ew("ew1")
    refe = sim.refe(slots=4)
    refe.apply_table(*sim.table(1, [["ew0", "ew1"], ["ew1", "ew0"]] * 2))
    assert batch(4).run(refe).right
    assert [r.peer for r in sim.reports if isinstance(r, Suspicion)] == ["ew0"]
    # Late again and again, so that it stays avoided after it has answered.
    for _ in range(8):
        refe._peers.health.trust("ew1", sim.now)
        refe._peers.avoid("ew1", "late")
    refe._peers.renew()
    before = sim.now
    for seed in range(3):
        assert batch(4, seed=seed).run(refe).right
    assert sim.now == before
    # Both owe the same rows, and the slow one answers in the end.
    slow.mode = "mute"
    sim.at = {sim.waits + 4: lambda: (setattr(slow, "mode", "answer"), slow.answer())}
    assert batch(4).run(refe).right
    assert refe.stats.deadlines == 0
