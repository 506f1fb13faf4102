"""What a peer put into a slot is checked before a number in it is used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc import native
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import dispatch as d
from tarragon_hpc.wire import parse


def make(table, pair_rows, rows, **change):
    """A dispatch of float32 rows as the tables say it, right or wrong."""
    header = d.RequestHeader(0, 0, 1, 1, 1, 2, rows, len(pair_rows), len(table), 4)
    data = d.pack_request_header(header._replace(**change))
    data += np.array(table, "<u4").tobytes() + np.array(pair_rows, "<u4").tobytes()
    data = data.ljust(d.rows_offset(len(table), len(pair_rows)), b"\0")
    return memoryview(data + bytes(rows * 4 * 4))


def test_a_good_dispatch():
    slot = make([(1, 2), (5, 1)], [0, 1, 1], rows=2)
    parsed = parse.parse_dispatch(slot)
    assert parsed.groups == [(1, 0, 2), (5, 2, 1)]
    assert np.frombuffer(parsed.pair_rows, "<u4").tolist() == [0, 1, 1]
    assert parsed.pair_rows_address == parse.address_of(parsed.pair_rows)
    assert parsed.rows_address == parse.address_of(slot) + d.rows_offset(2, 3)
    assert parsed.row_bytes == 16
    assert parsed.reply_nbytes == d.reply_bytes(3, 4, 4)


@pytest.mark.parametrize(
    ("slot", "why"),
    [
        (make([(1, 2)], [0, 2], rows=2), "not sent"),
        (make([(1, 2)], [0, 2**32 - 1], rows=2), "not sent"),
        (make([(1, 1)], [0, 1], rows=2), "add up"),
        (make([(1, 2), (2, 0)], [0, 1], rows=2), "add up"),
        (make([(1, 2**32 - 1), (2, 3)], [0, 1], rows=2), "add up"),
        (make([(2, 1), (1, 1)], [0, 1], rows=2), "ascending"),
        (make([(2, 1), (2, 1)], [0, 1], rows=2), "ascending"),
        (make([(1, 2)], [0, 1], rows=2, groups=2**31), "in a slot of"),
        (make([(1, 2)], [0, 1], rows=2, pairs=2**32 - 1), "in a slot of"),
        (make([(1, 2)], [0, 1], rows=2, hidden=2**32 - 1), "in a slot of"),
        (memoryview(b""), "shorter"),
    ],
)
def test_numbers_out_of_range_are_refused(slot, why):
    with pytest.raises(FrameError, match=why):
        parse.parse_dispatch(slot)


def test_a_reply_that_would_not_fit_is_refused():
    slot = make([(1, 3)], [0, 0, 0], rows=1)
    need = d.reply_bytes(3, 4, 4)
    assert parse.parse_dispatch(slot, need).reply_nbytes == need
    with pytest.raises(FrameError, match="would not fit"):
        parse.parse_dispatch(slot, need - 1)


@pytest.mark.native
@given(st.binary(max_size=120), st.integers(0, 4), st.integers(0, 6), st.integers(0, 5))
def test_native_and_twin_take_and_refuse_the_same(tables, rows, pairs, groups):
    slot = memoryview(bytes(d.HEADER_BYTES) + tables.replace(b"\xff", b"\0"))
    outcomes = []
    for function in (parse.parse_tables, native.module.parse_tables):
        try:
            found, index, _ = function(slot, rows, pairs, groups)
            outcomes.append((found, index))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.native
@given(st.data())
def test_native_and_twin_agree_on_nearly_good_tables(data):
    groups = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4))
    pairs = data.draw(st.integers(0, 6))
    index = data.draw(st.lists(st.integers(0, 3), min_size=pairs, max_size=pairs))
    slot = make(groups, index, rows=3)
    outcomes = []
    for function in (parse.parse_tables, native.module.parse_tables):
        try:
            outcomes.append(function(slot, 3, pairs, len(groups))[:2])
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
