"""Text as vLLM and transformers make it from the same files."""

from __future__ import annotations

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarragon_hpc.gateway.output import OutputOptions, SequenceOutput
from tarragon_hpc.gateway.state import Delta
from tarragon_hpc.gateway.template import ChatTemplate
from tarragon_hpc.gateway.text import TextCodec

pytestmark = pytest.mark.vllm

VOCAB = 512
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "Say <s> & \u20ac\n"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": ""},
]


def transformers_tokenizer(path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def engine():
    """vLLM's modules; importing them warns about what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detokenizer = pytest.importorskip("vllm.v1.engine.detokenizer")
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest
    return SimpleNamespace(
        Detokenizer=detokenizer.IncrementalDetokenizer,
        SamplingParams=SamplingParams,
        Request=EngineCoreRequest,
    )


def detokenizer(engine, tokenizer, prompt, **sampling):
    """vLLM's own, as its server would set it up for a request."""
    request = engine.Request(
        request_id="r",
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=engine.SamplingParams(**sampling),
        pooling_params=None,
        arrival_time=0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return engine.Detokenizer.from_new_request(tokenizer, request)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"eos_token": {"__type": "AddedToken", "content": "t", "special": True}},
        {"pad_token": None, "additional_special_tokens": ["th"]},
    ],
)
def test_encoding_and_chat_are_transformers(model_dir, tmp_path, flags):
    path = tmp_path / "model"
    shutil.copytree(model_dir, path)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | flags))
    theirs, ours = transformers_tokenizer(path), TextCodec.load(path)
    template = ChatTemplate.load(path)
    for text in ("", "Hello there, \u20ac!", "<s>x</s>", " leading the", "\n\n\t"):
        for special in (True, False):
            expected = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == expected
            shown = theirs.decode(expected, skip_special_tokens=special)
            assert ours.decode(expected, skip_special_tokens=special) == shown
    for prompt in (True, False):
        text = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt)
        assert template.render(TALK, add_generation_prompt=prompt) == text
        ids = theirs.apply_chat_template(TALK, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode(text, add_special_tokens=False) == ids


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    return transformers_tokenizer(model_dir)


STOPS = ["a", "b", "th", " t", "e ", "<s>", "s", "on"]
options_of_requests = st.fixed_dictionaries(
    {
        "stop": st.lists(st.sampled_from(STOPS), max_size=3).map(tuple),
        "include_stop_str_in_output": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "min_tokens": st.integers(0, 6),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    options=options_of_requests,
    finish=st.sampled_from(["length", "stop"]),
)
def test_output_is_vllms(codec, tokenizer, engine, prompt, tokens, options, finish):
    """Text, tokens and stop reason of any output, token by token and all at once."""
    sampling = options | {"stop": list(options["stop"]), "max_tokens": 50}
    theirs = detokenizer(engine, tokenizer, prompt, **sampling)
    reason = None
    for i, token in enumerate(tokens):
        ended = finish == "stop" and i == len(tokens) - 1
        reason = theirs.update([token], ended)
        if reason is not None:
            break
    expected = theirs.get_next_output_text(finished=True, delta=False)
    for size in (1, len(tokens)):
        ours = SequenceOutput(codec, prompt, OutputOptions(**options))
        text, ids, found = "", [], None
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            last = start + size >= len(tokens)
            piece = ours.push(Delta(0, part, [], finish if last else None, None))
            text, found = text + piece.text, piece.stop_reason
            ids += piece.token_ids
            if piece.finish_reason is not None:
                break
        assert (text, ids, found) == (expected, theirs.output_token_ids, reason)
