"""What a StructureSpec may be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.wire.common import StructureSpec
from tarragon_hpc.wire.structure import KINDS, MAX_NESTING, MAX_TEXT, problem


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", "{}"),
        ("json_object", ""),
        ("regex", ""),
        ("regex", "x" * MAX_TEXT),
        ("grammar", 'root ::= "a"'),
        ("choice", '[""]'),
        ("json", '{"a":' * (MAX_NESTING - 1) + "{}" + "}" * (MAX_NESTING - 1)),
    ],
)
def test_what_may_be(kind, text):
    assert problem(StructureSpec(kind, text)) is None


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("xml", "", "kind 'xml' is not one of json, json_object"),
        ("regex", "x" * (MAX_TEXT + 1), f"has {MAX_TEXT + 1} characters"),
        ("regex", "a\0b", "NUL"),
        ("grammar", "\n", "empty"),
        ("json", "", "JSON schema"),
        ("json", "true", "JSON schema"),
        ("json", '{"a":' * MAX_NESTING + "{}" + "}" * MAX_NESTING, "at most 64 levels"),
        ("json", '{"a":' * 20_000, "JSON schema"),
        ("choice", "yes", "list of at least one"),
        ("choice", "[]", "list of at least one"),
        ("choice", '["a", 1]', "list of strings"),
        ("choice", '["\\u0000"]', "NUL"),
    ],
)
def test_what_may_not(kind, text, why):
    assert why in problem(StructureSpec(kind, text))


@given(st.sampled_from(KINDS), st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
).map(json.dumps))  # fmt: skip
def test_no_text_makes_it_fail(kind, text):
    wrong = problem(StructureSpec(kind, text))
    if kind == "json" and wrong is None:
        assert isinstance(json.loads(text), dict)
    if kind == "choice" and wrong is None:
        assert all(isinstance(choice, str) for choice in json.loads(text))
