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


def make(table, pair_rows, sent, **change):
    """A dispatch of float32 rows as the tables say it, right or wrong."""
    header = d.RequestHeader(0, 0, 1, 1, 1, 2, sent, len(pair_rows), len(table), 4)
    data = d.pack_request_header(header._replace(**change))
    data += np.array(table, "<u4").tobytes() + np.array(pair_rows, "<u4").tobytes()
    data = data.ljust(d.rows_offset(len(table), len(pair_rows)), b"\0")
    return memoryview(data + bytes(sent * 4 * 4))


def test_a_good_dispatch():
    slot = make([(1, 2), (5, 1)], [0, 1, 1], 2)
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
        (make([(1, 2)], [0, 2], 2), "not sent"),
        (make([(1, 2)], [0, 2**32 - 1], 2), "not sent"),
        (make([(1, 1)], [0, 1], 2), "add up"),
        (make([(1, 2), (2, 0)], [0, 1], 2), "add up"),
        (make([(1, 2**32 - 1), (2, 3)], [0, 1], 2), "add up"),
        (make([(2, 1), (1, 1)], [0, 1], 2), "ascending"),
        (make([(2, 1), (2, 1)], [0, 1], 2), "ascending"),
        (make([(1, 2)], [0, 1], 2, groups=2**31), "exceeds its slot of"),
        (make([(1, 2)], [0, 1], 2, pairs=2**32 - 1), "exceeds its slot of"),
        (make([(1, 2)], [0, 1], 2, hidden=2**32 - 1), "exceeds its slot of"),
        (memoryview(b""), "shorter"),
    ],
)
def test_numbers_out_of_range_are_refused(slot, why):
    with pytest.raises(FrameError, match=why):
        parse.parse_dispatch(slot)


def test_a_reply_that_would_not_fit_is_refused():
    slot = make([(1, 3)], [0, 0, 0], 1)
    need = d.reply_bytes(3, 4, 4)
    assert parse.parse_dispatch(slot, need).reply_nbytes == need
    with pytest.raises(FrameError, match="would exceed a slot of"):
        parse.parse_dispatch(slot, need - 1)


@pytest.mark.native
@given(
    table=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4),
    pair_rows=st.lists(st.integers(0, 3), max_size=6),
    cut=st.integers(0, 300),
    capacity=st.integers(0, 200),
    change=st.dictionaries(
        st.sampled_from(["dtype", "rows", "pairs", "groups", "hidden"]),
        st.integers(0, 6) | st.sampled_from([2**16 - 1]),
        max_size=2,
    ),
    noise=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=2),
)
def test_native_and_twin_take_and_refuse_the_same(table, pair_rows, cut, capacity, change, noise):
    data = bytearray(make(table, pair_rows, 3, **change))
    for at, value in noise:
        if at < len(data):
            data[at] = value
    slot = memoryview(bytes(data[: max(0, len(data) - cut)] if cut < 200 else data))
    outcomes = []
    for function in (parse.parse_twin, native.module.parse_dispatch):
        try:
            header, groups, rows, index, _, *sizes = function(slot, capacity)
            outcomes.append((tuple(header), groups, rows, index, sizes))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
