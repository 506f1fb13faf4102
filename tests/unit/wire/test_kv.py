"""The layout of KV frames: what is packed is read back, and nothing is read beyond the frame."""

from __future__ import annotations

import pytest

from tarragon_hpc.errors import FrameError
from tarragon_hpc.wire import kv

HEADER = kv.Header(kv.PUT, kv.FLAG_COMMIT, 0, 1 << 40, 2, 5, 3, 4, 2 * kv.RUN_BYTES)
RUNS = [kv.Run(1 << 63, 2, 10, 12, 3), kv.Run(7, 1, 0, 0, 2)]


def frame() -> bytes:
    return kv.pack_header(HEADER) + b"".join(map(kv.pack_run, RUNS))


def test_round_trip():
    assert kv.unpack_header(frame()) == HEADER
    assert kv.unpack_runs(frame(), HEADER) == RUNS


@pytest.mark.parametrize(
    "data",
    [b"", frame()[:47], b"x" * 200, frame()[:-1]],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FrameError):
        kv.unpack_runs(data, kv.unpack_header(data))


def test_more_runs_than_bytes_are_refused():
    header = HEADER._replace(runs=3)
    with pytest.raises(FrameError, match="3 runs in 48 bytes"):
        kv.unpack_runs(frame(), header)


def test_rows_start_aligned_behind_all_tables():
    assert kv.put_payload(2, 5, 4, commit=True) == kv.aligned(48 + 48 + 4 * 5 * 5)
    assert kv.put_payload(2, 5, 4, commit=False) == kv.aligned(48 + 48 + 4 * 5 * 4)
    assert kv.fetch_payload(3, 8) == kv.aligned(48 + 96)


def test_keys_are_stable_and_differ():
    assert kv.request_key("a-1") == kv.request_key("a-1") != kv.request_key("a-2")
    assert 0 <= kv.request_key("a-1") < 1 << 64
