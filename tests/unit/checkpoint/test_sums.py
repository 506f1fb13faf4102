"""Checksums: the known value, every row for itself, and the fast ones equal to the plain one."""

from __future__ import annotations

import numpy as np
import pytest

from tarragon_hpc.checkpoint import sums

ROW_BYTES = (8, 8, 40)
ROWS = 5
KEYS = np.array([1 << 63, 7, 7, 7, 0], np.uint64)
POSITIONS = np.array([0, 1, 2, 3, 1 << 31], np.uint32)


def payload():
    return np.random.default_rng(0).integers(0, 256, ROWS * sum(ROW_BYTES), np.uint8)


def expected(data):
    out, at = [], 0
    for layer, size in enumerate(ROW_BYTES):
        for r in range(ROWS):
            cell = data[at : at + size].tobytes()
            out.append(sums.row_sum(int(KEYS[r]), layer, int(POSITIONS[r]), cell))
            at += size
    return out


@pytest.mark.parametrize("seal", [sums.seal, sums.plain_seal])
def test_every_row_gets_its_own_sum(seal):
    data, made = payload(), np.zeros(ROWS * 3, np.uint32)
    gone = np.zeros(ROWS * 3, np.uint8)
    seal(data, ROWS, ROW_BYTES, KEYS, POSITIONS, made, gone)
    assert made.tolist() == expected(data)
    assert len(set(made.tolist())) == len(made)


@pytest.mark.parametrize("seal", [sums.seal, sums.plain_seal])
def test_rows_that_are_gone_have_none(seal):
    data, made = payload(), np.zeros(ROWS * 3, np.uint32)
    gone = np.zeros(ROWS * 3, np.uint8)
    gone[[0, 7, 14]] = 1
    seal(data, ROWS, ROW_BYTES, KEYS, POSITIONS, made, gone)
    assert np.flatnonzero(made == sums.SUM_ABSENT).tolist() == [0, 7, 14]


def test_the_polynomial_is_castagnoli():
    assert sums.crc32c(0, b"123456789") == 0xE3069283
    assert sums.crc32c(sums.crc32c(0, b"12345"), b"6789") == 0xE3069283


@pytest.mark.parametrize("other", [(2, 3, 4), (1, 4, 4), (1, 3, 5)])
def test_a_row_in_the_wrong_place_is_as_wrong_as_a_flipped_bit(other):
    assert sums.row_sum(1, 3, 4, b"row") != sums.row_sum(*other, b"row")
    assert sums.row_sum(1, 3, 4, b"row") != sums.row_sum(1, 3, 4, b"rov")
