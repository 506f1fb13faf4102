"""Who is forgotten when a store is full; both implementations."""

from __future__ import annotations

import pytest

from tarragon_hpc.checkpoint.plain_requests import page_bytes
from tarragon_hpc.wire.kv import Run
from tests.unit.checkpoint.frames import ROW_BYTES, Client, row_of

PAGE = page_bytes(ROW_BYTES, 16)


@pytest.fixture
def store(make_store):
    return make_store(6 * PAGE + PAGE - 1)


def run(key, start, length, attempt=1):
    return Run(key, attempt, 0, start, length)


def test_the_cheapest_to_compute_anew_goes_first(store):
    client = Client(store)
    assert client.put(run(1, 0, 32), run(2, 0, 31), run(3, 0, 32)) == []
    assert client.put(run(1, 32, 1)) == []
    assert store.prefixes() == {1: 33, 3: 32}
    assert client.put(run(2, 31, 1)) == [2]  # its hole tells the AW
    assert store.stats()["kv_evicted"] == 1
    assert store.stats()["kv_used_bytes"] == 5 * PAGE


def test_nobody_goes_for_a_newcomer(store):
    client = Client(store)
    client.put(run(1, 0, 96))
    assert client.put(run(2, 0, 1)) == [2]
    assert store.prefixes() == {1: 96}
    client.free(run(1, 0, 0))
    client.put(run(1, 0, 16), run(2, 0, 80))
    assert client.put(run(1, 16, 1)) == [1]
    assert store.prefixes() == {2: 80}


def test_orphans_go_first_the_oldest_of_them_before_the_others(store):
    clients = [Client(store, number) for number in (1, 2, 3)]
    for number, client in enumerate(clients):
        client.put(run(number, 0, 32))
    store.client_lost(2, 10.0)
    store.client_lost(1, 11.0)
    new = Client(store, 4)
    assert new.put(run(7, 0, 1)) == []
    assert set(store.prefixes()) == {0, 2, 7}
    assert new.look(0, attempt=2)[0] == 0  # taken over: an orphan no more
    assert new.put(run(7, 1, 16), run(8, 0, 1)) == [8]
    assert set(store.prefixes()) == {0, 2, 7}


def test_a_request_that_is_larger_than_the_store_is_forgotten(store):
    client = Client(store)
    client.put(run(1, 0, 90))
    assert client.put(run(1, 90, 7)) == [1]
    assert store.prefixes() == {}
    assert store.stats()["kv_used_bytes"] == 0
    assert client.put(run(2, 0, 96)) == []


def test_pages_are_used_again_and_nothing_of_their_past_is_seen(store):
    client = Client(store)
    for key in range(50):
        assert client.put(run(key, 0, 40), run(1000 + key, 0, 40)) == []
        for k in (key, 1000 + key):
            rows = [[data for _, data in layers] for layers in client.fetch(k, 0, 40).rows]
            assert rows == [[row_of(k, i, p) for i in range(len(ROW_BYTES))] for p in range(40)]
        client.free(run(1000 + key, 0, 0), run(key, 0, 0))
    assert store.stats()["kv_evicted"] == store.stats()["kv_used_bytes"] == 0
