"""A working tokenizer for a checkpoint of random weights.

Byte-level BPE trained on text made up here, so that every string has token ids and every id of the
vocabulary has text. Written in the files that transformers, vLLM and the gateway read.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from tarragon_hpc.models.presets import BOS, EOS, PAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPECIAL_TOKENS = {BOS: "<s>", EOS: "</s>", PAD: "<pad>"}

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_WORDS = (
    "the of and to in is that it was for on are as with his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know get through back "
    "much before go good new write our used me man too any day same right look think also "
    "around another came come work three word must because does part even place well such here "
    "take why things help put years"
).split()
_ONSETS = "b br c ch cl d dr f fl g gr h j k l m n p pl qu r s sh sl st t th tr v w z".split()
_VOWELS = "a e i o u ai ea ee ie oo ou".split()
_CODAS = " |n|r|s|t|l|m|nd|ng|ck|st|th|rn|ll".split("|")
_ENDS = (". ", ". ", ", ", "? ", "! ", ": ", ".\n", '" ', "; ", ") ")


def write_tokenizer(directory: Path, *, vocab: int, max_len: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    The ids are exactly 0..vocab-1: <s>, </s>, <pad>, the 256 bytes, merges, and where the made-up
    text did not yield enough merges, reserved tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    bos, eos, pad = (SPECIAL_TOKENS[i] for i in (BOS, EOS, PAD))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SPECIAL_TOKENS[i] for i in sorted(SPECIAL_TOKENS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(lines=2 * vocab), trainer)
    missing = vocab - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<reserved_{i}>", normalized=False) for i in range(missing)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    for name, content in (
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _corpus(lines: int) -> Iterator[str]:
    """Sentences of common and invented words; the same ones every time."""
    rng = random.Random(0)
    lexicon = [_invented(rng) for _ in range(8 * lines)]
    for _ in range(lines):
        words = [
            rng.choice(_WORDS) if rng.random() < 0.6 else rng.choice(lexicon) for _ in "." * 12
        ]
        if rng.random() < 0.2:
            words.append(str(rng.randrange(10_000)))
        yield " ".join(words).capitalize() + rng.choice(_ENDS)


def _invented(rng: random.Random) -> str:
    count = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS).strip() for _ in range(count)
    )
