"""What is copied where, rule by rule."""

from __future__ import annotations

import pytest

from tarragon_hpc.checkpoint.pieces import Piece, Store, ranked
from tarragon_hpc.checkpoint.protection import Protection
from tarragon_hpc.wire.kv import Run

A, B, C = Store("cs0", 1, 1), Store("cs1", 1, 2), Store("cs2", 1, 3)
TOKEN = 100


def protection(*stores, replicas=1, catch_up=1 << 30):
    made = Protection(replicas, catch_up, TOKEN)
    made.set_stores(stores)
    return made


def test_each_step_copies_its_new_rows():
    p = protection(A)
    p.open(7, 1)
    assert p.plan([(7, 5)], 0.0) == [Piece(A, 7, 1, 0, 0, 5)]
    assert p.plan([(7, 6)], 0.1) == [Piece(A, 7, 1, 0, 5, 1)]
    assert p.plan([(7, 6)], 0.2) == []


def test_new_rows_are_never_limited():
    p = protection(A, catch_up=1)
    p.open(7, 1)
    assert p.plan([(7, 5000)], 0.0) == [Piece(A, 7, 1, 0, 0, 5000)]


def test_every_replica_gets_them():
    p = protection(A, B, C, replicas=2)
    p.open(7, 1)
    assert {x.store for x in p.plan([(7, 5)], 0.0)} == set(ranked(7, [A, B, C])[:2])


def test_no_store_no_pieces():
    p = protection()
    p.open(7, 1)
    assert p.plan([(7, 5)], 0.0) == []


def test_a_restored_request_goes_on_where_its_store_is():
    p = protection(A, B)
    first = ranked(7, [A, B])[0]
    other = B if first is A else A
    p.open(7, 2, {other: 40})
    assert p.plan([(7, 41)], 0.0) == [Piece(other, 7, 2, 40, 40, 1)]


def test_a_replica_that_has_less_gets_the_rest_as_backlog():
    p = protection(A, B, replicas=2, catch_up=20 * TOKEN * 20)  # 20 rows in the bucket
    p.open(7, 2, {A: 40, B: 10})
    assert p.plan([(7, 41)], 0.0) == [Piece(A, 7, 2, 40, 40, 1), Piece(B, 7, 2, 10, 10, 20)]


def test_holders_that_are_gone_count_for_nothing():
    p = protection(A)
    p.open(7, 2, {C: 40})
    assert p.plan([(7, 41)], 0.0) == [Piece(A, 7, 2, 0, 0, 41)]


def test_what_was_skipped_is_copied_later_within_the_budget():
    p = protection(A, catch_up=100 * TOKEN)  # 5 rows in the bucket
    p.open(7, 1)
    p.skipped(p.plan([(7, 20)], 0.0))
    assert p.plan([(7, 21)], 0.0) == [Piece(A, 7, 1, 0, 0, 5)]
    assert p.plan([(7, 22)], 0.0) == []
    assert p.plan([(7, 23)], 0.02) == [Piece(A, 7, 1, 0, 5, 2)]
    assert p.plan([(7, 24)], 9.0) == [Piece(A, 7, 1, 0, 7, 5)]
    assert p.stats()["kv_skipped_rows"] == 20


def test_one_row_at_least_can_be_paid():
    p = protection(A, catch_up=1)
    p.open(7, 1)
    p.skipped(p.plan([(7, 20)], 0.0))
    assert p.plan([(7, 21)], 0.0) == [Piece(A, 7, 1, 0, 0, 1)]


def test_the_shortest_backlog_comes_first_and_new_rows_before_it():
    p = protection(A, catch_up=200 * TOKEN)  # 10 rows in the bucket
    for key in (1, 2, 3, 4):
        p.open(key, 1)
    p.skipped(p.plan([(1, 30), (2, 4), (3, 4)], 0.0))
    assert p.plan([(1, 31), (2, 5), (3, 5), (4, 50)], 0.0) == [
        Piece(A, 4, 1, 0, 0, 50),
        Piece(A, 2, 1, 0, 0, 5),
        Piece(A, 3, 1, 0, 0, 5),
    ]


def test_backlog_of_requests_that_are_not_in_the_step_waits():
    p = protection(A)
    p.open(1, 1)
    p.open(2, 1)
    p.skipped(p.plan([(1, 3), (2, 4)], 0.0))
    assert p.plan([(2, 5)], 0.0) == [Piece(A, 2, 1, 0, 0, 5)]
    assert p.plan([(1, 4)], 0.0) == [Piece(A, 1, 1, 0, 0, 4)]


def test_a_new_store_gets_everything_from_the_start():
    p = protection(A, B)
    p.open(7, 1)
    first = ranked(7, [A, B])[0]
    other = B if first is A else A
    p.plan([(7, 5)], 0.0)
    assert p.set_stores([other]) == [7]
    assert p.plan([(7, 6)], 0.0) == [Piece(other, 7, 1, 0, 0, 6)]


def test_so_does_one_that_is_connected_to_anew():
    p = protection(A)
    p.open(7, 1)
    p.plan([(7, 5)], 0.0)
    again = A._replace(link=9)
    p.set_stores([again])
    assert p.plan([(7, 6)], 0.0) == [Piece(again, 7, 1, 0, 0, 6)]


def test_requests_stay_where_they_are_while_it_serves():
    p = protection(A)
    for key in range(20):
        p.open(key, 1)
    assert p.set_stores([A, B, C]) == []
    assert {x.store for x in p.plan([(key, 1) for key in range(20)], 0.0)} == {A}


def test_free_places_are_filled_when_a_store_comes():
    p = protection(A, replicas=2)
    p.open(7, 1)
    p.plan([(7, 5)], 0.0)
    assert p.set_stores([A, B]) == [7]
    assert p.plan([(7, 6)], 0.0) == [Piece(A, 7, 1, 0, 5, 1), Piece(B, 7, 1, 0, 0, 6)]


def test_a_store_that_refuses_is_not_asked_again_by_this_attempt():
    p = protection(A)
    p.open(7, 1)
    p.plan([(7, 5)], 0.0)
    p.answered(A, [Run(7, 1, 0, 0, 5)], {7})
    assert p.plan([(7, 6)], 0.0) == []
    p.open(7, 2)
    assert p.plan([(7, 7)], 0.0) == [Piece(A, 7, 2, 0, 0, 7)]


def test_but_another_store_that_comes_is():
    p = protection(A)
    p.open(7, 1)
    p.plan([(7, 5)], 0.0)
    p.refused(A, 7, 1)
    assert p.set_stores([A, B]) == [7]
    assert p.plan([(7, 6)], 0.0) == [Piece(B, 7, 1, 0, 0, 6)]


def test_answers_to_older_attempts_change_nothing():
    p = protection(A)
    p.open(7, 2)
    p.plan([(7, 5)], 0.0)
    p.refused(A, 7, 1)
    p.committed(A, 7, 1, 5)
    p.skipped([Piece(A, 7, 1, 0, 0, 5)])
    p.refused(A, 8, 1)
    assert p.plan([(7, 6)], 0.0) == [Piece(A, 7, 2, 0, 5, 1)]
    assert p.stats()["kv_lag_tokens"] == 6


def test_a_preempted_request_is_not_copied_twice():
    p = protection(A)
    p.open(7, 1)
    p.plan([(7, 50)], 0.0)
    assert p.plan([(7, 20)], 0.0) == []
    assert p.plan([(7, 51)], 0.0) == [Piece(A, 7, 1, 0, 50, 1)]


def test_backlog_ends_where_the_cache_ends():
    p = protection(A)
    p.open(7, 1)
    p.skipped(p.plan([(7, 50)], 0.0))
    assert p.plan([(7, 20)], 0.0) == [Piece(A, 7, 1, 0, 0, 20)]


def test_without_room_rows_become_backlog_and_short_pieces_go_first():
    p = protection(A)
    p.open(1, 1)
    p.open(2, 1)
    assert p.plan([(1, 50), (2, 1)], 0.0, {A: 11}) == [
        Piece(A, 2, 1, 0, 0, 1),
        Piece(A, 1, 1, 0, 0, 10),
    ]
    assert p.plan([(1, 51), (2, 2)], 0.0, {A: 0}) == []
    assert p.plan([(1, 52), (2, 3)], 0.0, {}) == []
    assert p.plan([(1, 53), (2, 4)], 0.0, {A: 99}) == [
        Piece(A, 2, 1, 0, 1, 3),
        Piece(A, 1, 1, 0, 10, 43),
    ]
    assert p.stats()["kv_skipped_rows"] == 40 + 1  # what is behind anyway does not count


def test_stats_tell_what_could_be_restored():
    p = protection(A, B, replicas=2)
    p.open(1, 1)
    p.open(2, 1)
    p.plan([(1, 100), (2, 3)], 0.0)
    assert p.stats() == {
        "kv_requests": 2,
        "kv_protected": 0,
        "kv_lag_tokens": 103,
        "kv_skipped_rows": 0,
    }
    p.answered(A, [Run(1, 1, 0, 0, 90), Run(2, 1, 0, 0, 3)], ())
    p.answered(B, [Run(1, 1, 0, 0, 50)], ())
    assert p.stats()["kv_protected"] == 2
    assert p.stats()["kv_lag_tokens"] == 10
    p.set_stores([B])
    assert p.stats()["kv_protected"] == 0
    assert p.stats()["kv_lag_tokens"] == 53
    p.close(1)
    p.close(1)
    assert p.stats()["kv_requests"] == 1


def test_requests_spread_over_stores_and_few_move_when_one_goes():
    stores = [Store(f"cs{i}", 1, i) for i in range(4)]
    first = {key: ranked(key, stores)[0] for key in range(400)}
    assert all(60 < list(first.values()).count(s) < 140 for s in stores)
    moved = [key for key in first if ranked(key, stores[1:])[0] != first[key]]
    assert all(first[key] == stores[0] for key in moved)
    elsewhere = [s._replace(link=9 - s.link) for s in reversed(stores)]
    assert [s.worker for s in ranked(3, stores)] == [s.worker for s in ranked(3, elsewhere)]


def test_a_step_of_an_unknown_request_is_an_error():
    with pytest.raises(KeyError):
        protection(A).plan([(7, 1)], 0.0)
