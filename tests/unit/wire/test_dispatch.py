"""The layout of dispatches and replies, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import dispatch as d

U32 = st.integers(0, 2**32 - 1)
REQUESTS = st.builds(
    d.RequestHeader,
    dtype=st.sampled_from(sorted(d.DTYPE_NAMES)),
    flags=st.integers(0, 3),
    incarnation=U32,
    epoch=U32,
    sequence=st.integers(0, 2**64 - 1),
    layer=U32,
    rows=st.integers(0, 3),
    pairs=st.integers(0, 5),
    groups=st.integers(0, 5),
    hidden=st.integers(0, 9),
)
REPLIES = st.builds(
    d.ReplyHeader,
    dtype=st.sampled_from(sorted(d.DTYPE_NAMES)),
    status=st.integers(0, 4),
    incarnation=U32,
    epoch=U32,
    sequence=st.integers(0, 2**64 - 1),
    layer=U32,
    rows=st.integers(0, 3),
    pairs=st.integers(0, 5),
    hidden=st.integers(0, 9),
    compute_ns=st.integers(0, 2**64 - 1),
)


@given(REQUESTS)
def test_request_header_survives_and_fills_its_64_bytes(header):
    data = d.pack_request_header(header)
    assert len(data) == d.HEADER_BYTES
    assert d.unpack_request_header(data + bytes(4096)) == header


@given(REPLIES)
def test_reply_header_survives_and_fills_its_64_bytes(header):
    data = d.pack_reply_header(header)
    assert len(data) == d.HEADER_BYTES
    assert d.unpack_reply_header(data + bytes(4096)) == header


@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_frame_error(data):
    for unpack in (d.unpack_request_header, d.unpack_reply_header):
        with contextlib.suppress(FrameError):
            unpack(data)


def test_sizes_that_exceed_the_slot_are_refused():
    header = d.RequestHeader(0, 0, 1, 1, 1, 0, 2, 2, 1, 16)
    size = d.request_bytes(2, 2, 1, 16, 4)
    data = d.pack_request_header(header) + bytes(size - d.HEADER_BYTES)
    assert d.unpack_request_header(data) == header
    with pytest.raises(FrameError, match="exceeds its slot of"):
        d.unpack_request_header(data[:-1])


def test_a_refusal_needs_no_rows():
    header = d.ReplyHeader(0, d.STATUS_STALE, 1, 1, 1, 0, 9, 9, 4096, 0)
    assert d.unpack_reply_header(d.pack_reply_header(header)) == header
    with pytest.raises(FrameError, match="9 pairs"):
        d.unpack_reply_header(d.pack_reply_header(header._replace(status=d.STATUS_OK)))


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64), st.data())
def test_a_slot_takes_any_dispatch_of_its_rows(slot_rows, top_k, experts, data):
    top_k = min(top_k, experts)
    request, reply = d.slot_geometry(slot_rows, top_k, experts, 16, 2)
    rows = data.draw(st.integers(1, slot_rows))
    pairs = data.draw(st.integers(rows, rows * top_k))
    groups = data.draw(st.integers(1, min(experts, pairs)))
    assert d.request_bytes(rows, pairs, groups, 16, 2) <= request
    assert d.reply_bytes(pairs, 16, 2) <= reply
