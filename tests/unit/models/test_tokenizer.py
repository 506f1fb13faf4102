"""The tokenizer of tiny checkpoints, read the way transformers and the gateway read it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tarragon_hpc.models.tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    target = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(target, vocab=1024, max_len=2048)
    return target


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_every_string_round_trips(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_every_byte_and_every_id_is_there(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(1024))
    single = [t for t, i in vocabulary.items() if i > 2 and len(t) == 1]
    assert len(single) == 256


def test_words_are_compressed(tokenizer):
    text = "there are so many people in the world"
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) < len(text) / 2


def test_large_vocabulary_is_filled_up_with_reserved_tokens(tmp_path):
    write_tokenizer(tmp_path, vocab=4096, max_len=128)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4096
    assert all(tokenizer.id_to_token(i) for i in range(4096))


def test_transformers_loads_it_with_special_tokens_and_chat_template(directory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
    text = "naïve ☃  text\n\tAgain"
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Why?"},
    ]
    prompt = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nYes\n</s>"
        "<|user|>\nWhy?\n<|assistant|>\n"
    )
