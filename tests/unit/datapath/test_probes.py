"""When a silent EW is probed, and when it counts as silent."""

from __future__ import annotations

from tarragon_hpc.datapath.probes import Probes


def test_it_is_probed_once_an_interval_and_silent_after_so_many_misses():
    probes = Probes(0.01, 3)
    asked = [probes.look("ew0", 1.0, 0, 1.0 + n * 0.001) for n in range(60)]
    assert [n for n, (ask, _) in enumerate(asked) if ask] == [10, 20, 30, 40, 50]
    assert next(n for n, (_, silent) in enumerate(asked) if silent) == 40
    assert all(silent for _, silent in asked[40:])


def test_answers_start_the_count_anew():
    probes = Probes(0.01, 3)
    answered = 0
    for n in range(1, 20):
        ask, silent = probes.look("ew0", 1.0, answered, 1.0 + n * 0.011)
        assert not silent
        if ask and n % 2:
            answered += 1


def test_a_reply_is_a_sign_of_life():
    probes = Probes(0.01, 3)
    for since in (1.0, 1.02, 1.04, 1.06, 1.08):  # it owes since then: what came before was answered
        assert probes.look("ew0", since, 0, since + 0.005) == (False, False)
        assert probes.look("ew0", since, 0, since + 0.012) == (True, False)
        assert probes.next_look("ew0", since) == since + 0.022


def test_each_ew_is_looked_at_on_its_own():
    probes = Probes(0.01, 1)
    assert probes.look("ew0", 1.0, 0, 1.01) == (True, False)
    assert probes.look("ew0", 1.0, 0, 1.02) == (True, True)
    assert probes.look("ew1", 1.0, 0, 1.02) == (True, False)
    probes.forget("ew0")
    assert probes.look("ew0", 1.0, 0, 1.03) == (True, False)
