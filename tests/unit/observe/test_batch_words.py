from __future__ import annotations

import pytest

from tarragon_hpc.observe.batch_words import batch_line, in_words

BATCH = {"total": 9, "done": 3, "refused": 0, "failed": 0, "tokens_per_s": 119.6, "eta_s": 50.2}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "batch: 3 of 9 done, 120 tokens/s, about 50 s left"),
        ({"eta_s": None}, "batch: 3 of 9 done, 120 tokens/s"),
        ({"refused": 1, "failed": 2, "eta_s": 0.0},
         "batch: 3 of 9 done, 120 tokens/s, 1 refused, 2 failed"),
    ],
)  # fmt: skip
def test_line(change, line):
    assert batch_line(BATCH | change) == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (11100, "3 h 5 min")]
)
def test_durations(seconds, text):
    assert in_words(seconds) == text
