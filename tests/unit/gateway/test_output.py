"""Deltas to pieces: text, stop strings over token borders, what ends a choice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.gateway.output import OutputOptions, SequenceOutput
from tarragon_hpc.gateway.state import Delta
from tarragon_hpc.wire.common import TokenLogprobs

EOS = 1


def feed(codec, tokens, sizes=(), finish="length", stop_reason=None, prompt=(0,), **options):
    """Pieces of a run that is delivered in deltas of the given sizes, then the rest."""
    output = SequenceOutput(codec, list(prompt), OutputOptions(**options))
    pieces, position = [], 0
    for size in [*sizes, len(tokens)]:
        part = tokens[position : position + size]
        position += len(part)
        last = position == len(tokens)
        delta = Delta(0, part, [], finish if last else None, stop_reason if last else None)
        pieces.append(output.push(delta))
        if pieces[-1].finish_reason is not None:
            break
    return pieces


def join(pieces):
    return (
        "".join(p.text for p in pieces),
        [t for p in pieces for t in p.token_ids],
        pieces[-1].finish_reason,
        pieces[-1].stop_reason,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc d\u20ac", min_size=1, max_size=25),
    st.lists(st.text("abc d\u20ac", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), max_size=8),
    st.booleans(),
)
def test_delivery_in_any_deltas_gives_the_same_choice(codec, text, stops, sizes, include):
    tokens = codec.encode(text, add_special_tokens=False)
    options = {"stop": tuple(stops), "include_stop_str_in_output": include}
    pieces = feed(codec, tokens, sizes, **options)
    assert join(pieces) == join(feed(codec, tokens, **options))
    out, kept, finish, reason = join(pieces)
    ends = {stop: text.index(stop) + len(stop) for stop in stops if stop in text}
    if not ends:
        assert (out, kept, finish, reason) == (text, tokens, "length", None)
        return
    assert finish == "stop"
    assert ends[reason] == min(ends.values())
    end = ends[reason]
    assert out == text[: end if include else end - len(reason)]
    # The last token kept is the one that completed the stop string.
    assert len(codec.decode(kept)) >= end
    assert len(codec.decode(kept[:-1]).rstrip("\ufffd")) < end


def test_the_token_the_engine_stopped_at_has_no_text(codec):
    word = codec.encode("the", add_special_tokens=False)
    for tokens, reason in (([*word, EOS], None), ([*word, 65], 65)):
        assert join(feed(codec, tokens, finish="stop", stop_reason=reason)) == (
            "the", tokens, "stop", reason,
        )  # fmt: skip
    shown = feed(codec, [*word, 65], finish="stop", include_stop_str_in_output=True)
    assert join(shown)[0] == "the" + codec.decode([65])
    special = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    assert join(feed(codec, [*word, EOS], finish="stop", **special))[0] == "the</s>"


@pytest.mark.parametrize(("min_tokens", "kept"), [(0, 1), (1, 3), (2, 3), (3, 4)])
def test_stop_strings_before_min_tokens_do_not_count(codec, min_tokens, kept):
    a, b = (codec.encode(c, add_special_tokens=False)[0] for c in "ab")
    tokens = [a, b, a, b]
    out = join(feed(codec, tokens, stop=("a",), min_tokens=min_tokens))
    assert out[1] == tokens[:kept]
    assert out[2] == ("stop" if kept < 4 else "length")


def test_held_back_text_comes_out_at_the_end(codec):
    tokens = codec.encode("ab", add_special_tokens=False)
    assert [p.text for p in feed(codec, tokens, [1, 1], stop=("abc",))] == ["", "ab"]


def test_scores_are_ranked_and_name_their_tokens(codec):
    output = SequenceOutput(codec, [0], OutputOptions())
    a, b, c = (codec.encode(x, add_special_tokens=False)[0] for x in "abc")
    minus_infinity = float("-inf")
    entry = TokenLogprobs([a, b, a, c], [-2.0, -0.5, -2.0, minus_infinity], 2)
    (score,) = output.push(Delta(0, [a], [entry], None, None)).scores
    assert score.chosen == ("a", -2.0)
    assert score.ranked == [("b", -0.5), ("a", -2.0), ("c", -9999.0)]


def test_without_a_tokenizer_there_are_ids_and_no_text():
    output = SequenceOutput(None, [0], OutputOptions())
    piece = output.push(Delta(0, [7, 8], [TokenLogprobs([7], [-1.0], 1)] * 2, "stop", None))
    assert (piece.text, piece.token_ids, piece.finish_reason) == ("", [7, 8], "stop")
    assert piece.scores[0].chosen == ("token_id:7", -1.0)
