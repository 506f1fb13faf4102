"""Text to token ids and back, by the checkpoint's tokenizer.json. Nothing here runs a model."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tarragon_hpc.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

# Enough of a prompt's end for the decoder to know whether a word or a character goes on.
_PRIMING = 64
# A UTF-8 character has at most four bytes: at most three tokens come before its last one.
_UNFINISHED = 3
BROKEN = "\ufffd"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; empty if there is no such file. Raises ModelError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return data


def special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like in tokenizer_config.json, name → text."""
    tokens = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


class TextCodec:
    """A tokenizer as transformers 5 would set it up from the same files.

    Where there is a tokenizer.json, it alone says which special tokens are added; `add_bos_token`
    and `add_eos_token` in tokenizer_config.json are for checkpoints without one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)

    @classmethod
    def load(cls, directory: Path) -> TextCodec | None:
        """The tokenizer of a checkpoint; None if it has none. Raises ModelError if it is broken."""
        path = directory / "tokenizer.json"
        if not path.exists():
            return None
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise ModelError(f"{path}: not a tokenizer: {error}") from None
        _mark_special(tokenizer, read_json(directory / "tokenizer_config.json"))
        return cls(tokenizer)

    def may_fit(self, text: str, tokens: int) -> bool:
        """Whether a text could have as few tokens as that, judged by its length alone."""
        return len(text) <= tokens * self._longest

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens that are written out in the text count as such.

        Takes about a second for some megabytes and lets other threads run meanwhile.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of a whole sequence."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def decoder(self, prompt: Sequence[int], *, skip_special_tokens: bool) -> Detokenizer:
        """An incremental decoder of what follows a prompt."""
        return Detokenizer(self._tokenizer, prompt, skip_special_tokens)

    def token_text(self, token: int, before: Sequence[int]) -> str:
        """The text of one token after others, for log probabilities.

        A token that ends inside a character has no text; the one that completes the character has
        all of it.
        """
        text = self.decode([token])
        if not text.endswith(BROKEN):
            return text
        context = list(before[-_UNFINISHED:])
        for start in range(len(context) - 1, -1, -1):
            whole = self.decode([*context[start:], token])
            if not whole.endswith(BROKEN):
                head = self.decode(self._complete(context[start:]))
                return whole[len(os.path.commonprefix([head, whole])) :]
        return ""

    def _complete(self, ids: list[int]) -> list[int]:
        """Without the tokens at the end that leave a character unfinished."""
        end = len(ids)
        while end and self.decode([ids[end - 1]]).endswith(BROKEN):
            end -= 1
        return ids[:end]


class Detokenizer:
    """Turns the tokens of one output into text, piece by piece; never half a character.

    The pieces in a row are what decoding prompt and output together adds to the prompt's text,
    without the bytes of a character that was not finished at the end.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stream = DecodeStream(
            ids=list(prompt[-_PRIMING:]), skip_special_tokens=self._skip_special
        )

    def push(self, token: int) -> str:
        """The text that this token completes."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            # Byte-fallback tokens that are no valid UTF-8 can change text already given out; the
            # stream then refuses to go on. What it held back is lost, as it is in vLLM.
            _log.warning("decoding starts anew after a token that cannot follow: %s", error)
            self._stream = DecodeStream(skip_special_tokens=self._skip_special)
            return self._stream.step(self._tokenizer, token) or ""


def _mark_special(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json calls special are, even if tokenizer.json forgot to say."""
    listed = settings.get("additional_special_tokens")
    extra = [t for t in listed if isinstance(t, str)] if isinstance(listed, list) else []
    marked = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = {*special_tokens(settings).values(), *extra} - marked
    tokenizer.add_special_tokens(sorted(t for t in missing if tokenizer.token_to_id(t) is not None))
