"""Stop strings: the answer is the same however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.gateway.stops import StopMatcher

texts = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def run(pieces, stops, include):
    """(text given out, stop string found, the longest that was ever held back)."""
    matcher, out, held = StopMatcher(stops, include=include), "", 0
    seen = ""
    for piece in pieces:
        out += matcher.push(piece)
        seen += piece
        if matcher.found is not None:
            break
        held = max(held, len(seen) - len(out))
    return out + matcher.flush(), matcher.found, held


def expected(text, stops, include):
    """By the definition: the stop string that is complete first, then the one listed first."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def cut(text, places):
    marks = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in zip(marks, marks[1:], strict=False)]


@given(texts, stop_lists, st.lists(st.integers(0, 100)), st.booleans())
def test_cutting_the_text_anywhere_changes_nothing(text, stops, places, include):
    out, found, held = run(cut(text, places), stops, include)
    assert (out, found) == expected(text, stops, include)
    assert held == 0 if include else held < max(map(len, stops))


@pytest.mark.parametrize(
    ("pieces", "stops", "out"),
    [
        (["hel", "lo E", "N", "D more"], ["END"], ["hel", "lo ", "", ""]),
        (["E", "EN", "x"], ["END"], ["", "E", "ENx"]),
        (["ab", "c"], ["zz", "c"], ["ab", ""]),
    ],
)
def test_only_what_could_become_a_stop_string_is_held_back(pieces, stops, out):
    matcher = StopMatcher(stops)
    assert [matcher.push(piece) for piece in pieces] == out


def test_a_stop_string_that_ends_before_min_tokens_does_not_count():
    matcher = StopMatcher(["aa"])
    assert matcher.push("xaa", may_stop=False) == "xa"
    assert matcher.push("a") == ""
    assert matcher.found == "aa"
    assert matcher.push("more") == matcher.flush() == ""


def test_without_stop_strings_everything_passes():
    matcher = StopMatcher([])
    assert matcher.push("anything") == "anything"
    assert matcher.flush() == ""
