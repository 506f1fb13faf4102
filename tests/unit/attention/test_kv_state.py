"""Which positions of a sequence may be restored, where rows lie, and when a restore pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.attention.found import Found
from tarragon_hpc.attention.kv_state import slots
from tarragon_hpc.checkpoint.choice import worth_restoring


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.lists(st.integers(0, 2), max_size=12),
)
def test_usable_is_the_common_beginning_without_the_last_token(known, committed):
    usable = Found("r", 2, {}, committed).usable(known)
    assert list(known[:usable]) == list(committed[:usable])
    assert usable <= len(known) - 1
    more = usable + 1
    assert more > len(known) - 1 or list(known[:more]) != list(committed[:more])


@given(st.integers(0, 200), st.integers(1, 60), st.sampled_from([(16,), (32, 128), (4, 16, 64)]))
def test_slots_are_block_and_offset_in_every_group(start, length, sizes):
    tables = [[7 * b + 3 for b in range(300 // size + 1)] for size in sizes]
    for found, table, size in zip(slots(tables, sizes, start, length), tables, sizes, strict=True):
        expected = [table[p // size] * size + p % size for p in range(start, start + length)]
        assert found.tolist() == expected


@pytest.mark.parametrize(
    ("tokens", "nbytes", "bytes_per_s", "tokens_per_s", "worth"),
    [
        (10, 1 << 20, None, 1e3, True),
        (10, 1 << 20, 1e9, None, True),
        (10, 1 << 20, 1e9, 1e5, False),  # 11 ms against 0.1 ms
        (1000, 1 << 20, 1e9, 1e4, True),  # 11 ms against 100 ms
        (1000, 1 << 30, 1e9, 1e4, False),  # 1 s against 100 ms
    ],
)
def test_the_cheaper_way_is_taken(tokens, nbytes, bytes_per_s, tokens_per_s, worth):
    chosen = worth_restoring(tokens, nbytes, bytes_per_s=bytes_per_s, tokens_per_s=tokens_per_s)
    assert chosen is worth
