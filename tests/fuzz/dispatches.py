"""Requests and replies of the data plane; native code and its twin must agree on every one."""

from __future__ import annotations

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import dispatch as d
from tarragon_hpc.wire import parse
from tests.fuzz.target import Family

family = Family()


def _dispatch(table, pair_rows, sent, dtype=0, hidden=4):
    header = d.RequestHeader(dtype, 0, 1, 1, 1, 2, sent, len(pair_rows), len(table), hidden)
    data = d.pack_request_header(header)
    data += np.array(table, "<u4").tobytes() + np.array(pair_rows, "<u4").tobytes()
    data = data.ljust(d.rows_offset(len(table), len(pair_rows)), b"\0")
    return data + bytes(sent * hidden * (4, 2, 2)[dtype])


def _dispatches():
    """Behind two bytes: the size of the reply's slot, in units of 16 bytes."""
    return [
        b"\xff\x00" + _dispatch([(1, 2), (5, 1)], [0, 1, 1], 2),
        b"\x10\x00" + _dispatch([(0, 1)], [0], 1, dtype=1, hidden=8),
        b"\x10\x00" + _dispatch([], [], 0),
    ]


def _outcome(function, slot, capacity):
    try:
        header, groups, rows, pair_rows, _, *sizes = function(slot, capacity)
    except ValueError as error:
        return str(error)
    return tuple(header), list(map(tuple, groups)), rows, pair_rows, sizes


@family.add(_dispatches, FrameError)
def dispatch(data):
    capacity, slot = 16 * int.from_bytes(data[:2], "little"), memoryview(bytearray(data[2:]))
    outcome = _outcome(parse.parse_twin, slot, capacity)
    if native.reason is None:
        assert outcome == _outcome(native.module.parse_dispatch, slot, capacity)
    parsed = parse.parse_dispatch(slot, capacity)
    first = parse.address_of(slot)
    rows = parsed.header.rows * parsed.row_bytes
    assert first <= parsed.rows_address <= parsed.rows_address + rows <= first + len(slot)
    assert parsed.reply_nbytes <= capacity
    assert sum(count for _, _, count in parsed.groups) == parsed.header.pairs


def _replies():
    header = d.ReplyHeader(1, d.STATUS_OK, 1, 2, 3, 4, 2, 2, 8, 1000)
    return [d.pack_reply_header(header) + bytes(2 * 8 * 2), d.pack_reply_header(header)]


@family.add(_replies, FrameError)
def dispatch_reply(data):
    header = d.unpack_reply_header(data)
    itemsize = d._ITEMSIZES[header.dtype]
    if header.status == d.STATUS_OK:
        assert d.reply_bytes(header.pairs, header.hidden, itemsize) <= len(data)
