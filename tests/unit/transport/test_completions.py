"""What a work completion means for the peer."""

from __future__ import annotations

import pytest

from tarragon_hpc.transport.completions import completion, first_failure


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0, "ok"),
        (2, "unreachable"),  # the own port is down
        (12, "unreachable"),
        (20, "unreachable"),
        (5, "flushed"),
        (9, "access"),
        (10, "access"),
        (13, "not ready"),
        (4, "broken"),
        (19, "broken"),
        (21, "broken"),
        (999, "broken"),
    ],
)
def test_kind_of_a_status(status, kind):
    assert completion(7, 1, status).kind == kind


def test_every_status_of_verbs_h_has_a_name():
    texts = [completion(7, 1, status).text for status in range(22)]
    assert not [t for t in texts if "(status" in t]
    assert len(set(texts)) == 22


def test_the_text_says_what_happened_and_what_the_device_says():
    assert completion(7, 1, 12).text == "unreachable (RETRY_EXC_ERR)"
    assert completion(7, 1, 12, 0x81).text == "unreachable (RETRY_EXC_ERR, vendor error 0x81)"
    assert completion(7, 1, 99).text == "the queue pair failed (status 99)"


def test_the_failure_that_tells_why_comes_before_what_was_flushed_behind_it():
    flushed, why, ok = (completion(7, n, status) for n, status in ((1, 5), (2, 10), (3, 0)))
    assert first_failure([ok, flushed, why]) is why
    assert first_failure([ok, flushed]) is flushed
