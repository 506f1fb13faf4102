"""Token ids and text."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.errors import ModelError
from tarragon_hpc.gateway.text import BROKEN, TextCodec, special_tokens

VOCAB = 512

ids = st.lists(st.integers(0, VOCAB - 1), max_size=40)
# What a prompt ends with decides whether its last character goes on in the output.
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


def pieces(codec, prompt, tokens, skip=True):
    decoder = codec.decoder(prompt, skip_special_tokens=skip)
    return [decoder.push(token) for token in tokens]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.data())
def test_text_comes_back_whole_and_no_piece_has_half_a_character(codec, text, data):
    tokens = codec.encode(text, add_special_tokens=True)
    cut = data.draw(st.integers(1, len(tokens)))
    parts = pieces(codec, tokens[:cut], tokens[cut:])
    assert BROKEN in text or not any(BROKEN in part for part in parts[1:])
    whole = codec.decode(tokens, skip_special_tokens=True)
    assert whole == text
    if not codec.decode(tokens[:cut]).endswith(BROKEN):
        assert "".join(parts) == text[len(codec.decode(tokens[:cut], skip_special_tokens=True)) :]


@settings(max_examples=300, deadline=None)
@given(prompts, ids, st.booleans())
def test_any_tokens_decode_to_what_decoding_all_at_once_adds(codec, prompt, tokens, skip):
    before = codec.decode(prompt, skip_special_tokens=skip)
    if before.endswith(BROKEN):
        return
    parts = pieces(codec, prompt, tokens, skip)
    whole = codec.decode([*prompt, *tokens], skip_special_tokens=skip)
    assert whole.startswith(before + "".join(parts))
    rest = whole[len(before + "".join(parts)) :]
    assert set(rest) <= {BROKEN}


def test_special_tokens_are_added_and_recognised(codec):
    assert (
        codec.encode("a", add_special_tokens=False)
        == codec.encode("a", add_special_tokens=True)[1:]
    )
    assert codec.encode("a", add_special_tokens=True)[0] == 0
    assert codec.encode("<s></s>", add_special_tokens=False) == [0, 1]
    assert codec.decode([0, 1], skip_special_tokens=True) == ""
    assert codec.decode([0, 1]) == "<s></s>"
    assert pieces(codec, [5], [0, 1], skip=False) == ["<s>", "</s>"]
    assert pieces(codec, [5], [0, 1]) == ["", ""]


def test_a_token_of_log_probabilities_has_its_character_when_it_completes_it(codec):
    tokens = codec.encode("\u20ac", add_special_tokens=False)
    assert len(tokens) == 3
    texts = [codec.token_text(t, [9, *tokens[:i]]) for i, t in enumerate(tokens)]
    assert texts == ["", "", "\u20ac"]
    assert codec.token_text(tokens[2], []) == ""
    word = codec.encode("the", add_special_tokens=False)[0]
    assert codec.token_text(word, tokens) == codec.decode([word])


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_the_texts_of_the_tokens_in_a_row_are_the_text(codec, text):
    tokens = codec.encode(text, add_special_tokens=False)
    if BROKEN not in text:
        assert "".join(codec.token_text(t, tokens[:i]) for i, t in enumerate(tokens)) == text


@pytest.fixture
def copy(model_dir, tmp_path):
    """A copy of the model directory and a function that changes its tokenizer_config.json."""
    path = tmp_path / "copy"
    shutil.copytree(model_dir, path)

    def configure(**changes):
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return TextCodec.load(path)

    return path, configure


def test_tokens_that_only_the_settings_call_special_are(copy):
    word = TextCodec.load(copy[0]).decode([300])
    assert word.isascii()
    assert word.isalpha()
    codec = copy[1](additional_special_tokens=[word, "not in the vocabulary"])
    assert codec.decode([300], skip_special_tokens=True) == ""
    assert codec.decode([300]) == word


def test_special_tokens_by_name():
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "x": "y"}
    assert special_tokens(settings) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_missing_tokenizer_is_none_and_a_broken_one_names_its_file(tmp_path, copy):
    assert TextCodec.load(tmp_path / "nowhere") is None
    path, configure = copy
    (path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer_config.json: must hold a JSON object"):
        TextCodec.load(path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer"):
        TextCodec.load(path)


def test_truncation_and_padding_in_the_file_do_not_apply(model_dir, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = TextCodec.load(tmp_path).encode("a b c d e f", add_special_tokens=False)
    assert 2 < len(ids) < 50


@given(st.text(max_size=60))
def test_a_text_that_cannot_fit_has_more_tokens(codec, text):
    count = len(codec.encode(text, add_special_tokens=False))
    assert codec.may_fit(text, count)
    assert not codec.may_fit("x" * 10_000, 10)
