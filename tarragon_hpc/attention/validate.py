"""Requests that can never run are refused before the engine sees them. Pure.

vLLM trusts its callers: a token id outside the vocabulary, say, ends the engine and with it every
sequence it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.errors import RequestError
from tarragon_hpc.wire.structure import problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.wire.common import SamplingSpec

_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model and its engine can take.

    vocab: token ids are 0 … vocab-1; max_len: tokens of prompt and output together;
    max_logprobs: most log probabilities per position.
    """

    vocab: int
    max_len: int
    max_logprobs: int


def check_request(
    prompt: Sequence[int], sampling: SamplingSpec, limits: Limits, tokens: Sequence[int] = ()
) -> None:
    """Raise RequestError, naming the field at fault, unless the engine can run the sequence.

    tokens: what it has produced already, elsewhere. An output that would outgrow the context is
    not an error: it ends there with reason "length".
    """
    _check_prompt(prompt, limits)
    _check_lengths(sampling)
    _check_ids("tokens", tokens, limits)
    if len(tokens) >= min(sampling.max_tokens, limits.max_len - len(prompt)):
        _refuse("tokens", len(tokens), "are there already: the sequence is complete")
    _check_distribution(sampling)
    _check_ids("stop_token_ids", sampling.stop_token_ids, limits)
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= limits.max_logprobs:
        _refuse("logprobs", sampling.logprobs, f"must be in [0, {limits.max_logprobs}]")
    structure = sampling.structure
    if structure is not None and (wrong := problem(structure)) is not None:
        raise RequestError(f"{structure.param}: {wrong}", param=structure.param)


def _check_prompt(prompt: Sequence[int], limits: Limits) -> None:
    if not prompt:
        raise RequestError("prompt: must have at least one token", param="prompt")
    _check_ids("prompt", prompt, limits)
    if len(prompt) >= limits.max_len:
        raise RequestError(
            f"prompt: has {len(prompt)} tokens, but the context holds {limits.max_len} tokens of "
            "prompt and output together",
            param="prompt",
            code="context_length_exceeded",
        )


def _check_ids(name: str, ids: Sequence[int], limits: Limits) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < limits.vocab:
            _refuse(name, token, f"is not a token id; the vocabulary is 0 to {limits.vocab - 1}")


def _check_lengths(sampling: SamplingSpec) -> None:
    if sampling.max_tokens < 1:
        _refuse("max_tokens", sampling.max_tokens, "must be at least 1")
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        _refuse("min_tokens", sampling.min_tokens, f"must be in [0, {sampling.max_tokens}]")


def _check_distribution(sampling: SamplingSpec) -> None:
    """Written so that a NaN is refused as well."""
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("min_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ):
        value = getattr(sampling, name)
        if not low <= value <= high:
            _refuse(name, value, f"must be in [{low:g}, {high:g}]")
    if not 0.0 < sampling.top_p <= 1.0:
        _refuse("top_p", sampling.top_p, "must be in (0, 1]")
    if sampling.top_k < -1:
        _refuse("top_k", sampling.top_k, "must be 0 or -1 (all tokens), or at least 1")
    if not 0.0 < sampling.repetition_penalty < float("inf"):
        _refuse("repetition_penalty", sampling.repetition_penalty, "must be greater than 0")
    if sampling.seed is not None and sampling.seed not in _INT64:
        _refuse("seed", sampling.seed, "must fit in 64 bits")


def _refuse(name: str, value: float, problem: str) -> None:
    raise RequestError(f"{name}: {value} {problem}", param=name)
