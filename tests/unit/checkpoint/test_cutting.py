"""Cutting batches into frames: everything once, in an order that leaves no holes, and it fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.checkpoint.cutting import Frame, clip_runs, clip_segments, cut, frame_bytes
from tarragon_hpc.checkpoint.row_layout import RowLayout
from tarragon_hpc.wire.kv import Run

layouts = st.lists(st.integers(1, 300), min_size=1, max_size=6).map(RowLayout)


@given(layouts, st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(500, 20_000))
def test_each_row_of_each_layer_goes_once_in_order_and_is_committed_last(layout, runs, capacity):
    rows = sum(runs)
    frames = cut(rows, len(runs), layout, capacity)
    reached = [0] * layout.layers
    committed = 0
    for frame in frames:
        mine = len(clip_runs([Run(k, 1, 0, 0, n) for k, n in enumerate(runs)], *frame[2:4]))
        assert frame_bytes(mine, frame, layout) <= capacity
        assert frame.start < frame.stop
        for layer in range(frame.first_layer, frame.first_layer + frame.layers):
            assert reached[layer] == frame.start
            reached[layer] = frame.stop
        if frame.commit:
            assert committed == frame.start
            committed = frame.stop
            assert min(reached) >= committed
        else:
            assert frame.layers
            assert committed == 0
    assert reached == [rows] * layout.layers
    assert committed == rows


def test_what_fits_goes_in_one_frame():
    layout = RowLayout([100, 100])
    whole = Frame(0, 2, 0, 3, commit=True)
    assert cut(3, 3, layout, frame_bytes(3, whole, layout)) == [whole]


def test_layers_are_parted_before_rows():
    layout = RowLayout([100] * 4)
    assert cut(3, 1, layout, 128 + 600) == [
        Frame(0, 2, 0, 3, commit=False),
        Frame(2, 2, 0, 3, commit=False),
        Frame(0, 0, 0, 3, commit=True),
    ]
    assert cut(3, 1, layout, 128 + 200)[:3] == [
        Frame(0, 1, 0, 2, commit=False),
        Frame(1, 1, 0, 2, commit=False),
        Frame(2, 1, 0, 2, commit=False),
    ]


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="a row of 300 bytes does not fit 300 bytes"):
        cut(1, 1, RowLayout([10, 300]), 300)


def test_runs_and_segments_are_clipped_alike():
    runs = [Run(1, 1, 0, 10, 3), Run(2, 1, 5, 0, 1), Run(3, 2, 0, 7, 4)]
    assert clip_runs(runs, 2, 6) == [
        Run(1, 1, 0, 12, 1),
        Run(2, 1, 5, 0, 1),
        Run(3, 2, 0, 7, 2),
    ]
    assert clip_segments([(0, 3), (10, 11), (20, 24)], 2, 6) == [(2, 3), (10, 11), (20, 22)]


def test_neighbouring_layers_of_the_same_size_are_taken_together():
    layout = RowLayout([4, 4, 8, 8, 8, 4])
    assert list(layout.spans(0, 6)) == [(0, 2, 4), (2, 5, 8), (5, 6, 4)]
    assert list(layout.spans(1, 3)) == [(1, 2, 4), (2, 4, 8)]
    assert layout.token_bytes == 36


def test_a_layout_needs_layers():
    with pytest.raises(ValueError, match="row_bytes"):
        RowLayout([])
    with pytest.raises(ValueError, match="row_bytes"):
        RowLayout([4, 0])
