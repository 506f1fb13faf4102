"""From the fields of a request to the sampling of its sequences, with vLLM's defaults."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tarragon_hpc.errors import ModelError, RequestError
from tarragon_hpc.gateway.fields import shown
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
from tarragon_hpc.gateway.structure import structure_of
from tarragon_hpc.gateway.text import read_json
from tarragon_hpc.wire.common import SamplingSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# What a request means by leaving a field out, if the checkpoint does not say otherwise.
_NEUTRAL: dict[str, float | int] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model can take. max_len: tokens of prompt and output together."""

    vocab: int
    max_len: int


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the checkpoint recommends (vLLM's --generation-config auto)."""

    values: dict[str, float | int]
    max_tokens: int | None = None

    @classmethod
    def load(cls, directory: Path) -> SamplingDefaults:
        """Read generation_config.json, which may be missing. Raises ModelError on nonsense."""
        path = directory / "generation_config.json"
        data = read_json(path)
        values: dict[str, float | int] = dict(_NEUTRAL)
        for name in (*_NEUTRAL, "max_new_tokens"):
            value = data.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ModelError(f"{path}: {name}: must be a number (got {value!r})")
            if not math.isfinite(value):
                raise ModelError(f"{path}: {name}: must be finite (got {value!r})")
            values[name] = int(value) if name in ("top_k", "max_new_tokens") else value
        max_tokens = values.pop("max_new_tokens", None)
        return cls(values, None if max_tokens is None else int(max_tokens))


def check_prompt(prompt: Sequence[int], limits: Limits, param: str) -> None:
    """Raises RequestError unless an engine can take these ids and has room for one more."""
    if not prompt:
        raise RequestError(f"{param}: must have at least one token", param=param)
    if len(prompt) >= limits.max_len:
        raise RequestError(
            f"{param}: has {len(prompt)} tokens; the model's context of {limits.max_len} must leave"
            " room for at least one more",
            param=param,
            code="context_length_exceeded",
        )
    wrong = next((t for t in (min(prompt), max(prompt)) if not 0 <= t < limits.vocab), None)
    if wrong is not None:
        raise RequestError(
            f"{param}: token id {shown(wrong)} is not in the vocabulary (0 to {limits.vocab - 1})",
            param=param,
        )


def sampling_specs(
    request: CompletionRequest | ChatRequest,
    prompt_tokens: int,
    limits: Limits,
    defaults: SamplingDefaults,
) -> list[SamplingSpec]:
    """The `n` samplings of one checked prompt. Raises RequestError.

    As in vLLM: output is cut to what the context leaves, and choice i of a seeded request is
    sampled with seed + i.
    """
    for i, token in enumerate(request.stop_token_ids):
        if token >= limits.vocab:
            raise RequestError(
                f"stop_token_ids[{i}]: token id {shown(token)} is not in the vocabulary"
                f" (0 to {limits.vocab - 1})",
                param="stop_token_ids",
            )
    max_tokens = _max_tokens(request, prompt_tokens, limits, defaults)
    if request.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens: must be at most {max_tokens}, the tokens that may be generated"
            f" (got {shown(request.min_tokens)})",
            param="min_tokens",
        )
    if isinstance(request, ChatRequest):
        logprobs = request.top_logprobs if request.logprobs else None
    else:
        logprobs = request.logprobs
    chosen: dict[str, Any] = {
        name: value if (value := getattr(request, name)) is not None else defaults.values[name]
        for name in _NEUTRAL
    }
    seed = None if request.seed == -1 else request.seed
    first = SamplingSpec(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        seed=seed,
        ignore_eos=request.ignore_eos,
        stop_token_ids=request.stop_token_ids,
        logprobs=logprobs,
        structure=structure_of(request),
        **chosen,
    )
    if seed is None:
        return [first] * request.n
    return [msgspec.structs.replace(first, seed=seed + i) for i in range(request.n)]


def seeded(spec: SamplingSpec) -> SamplingSpec:
    """With a seed that is drawn now if it has none: whoever goes on with it draws alike.

    A greedy one needs none.
    """
    if spec.seed is not None or spec.temperature == 0:
        return spec
    return msgspec.structs.replace(spec, seed=secrets.randbits(63))


def _max_tokens(
    request: CompletionRequest | ChatRequest,
    prompt_tokens: int,
    limits: Limits,
    defaults: SamplingDefaults,
) -> int:
    param, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        param, asked = "max_completion_tokens", request.max_completion_tokens
    if asked is not None and asked > limits.max_len:
        raise RequestError(
            f"{param}: must be at most {limits.max_len}, the model's context (got {shown(asked)})",
            param=param,
        )
    room = limits.max_len - prompt_tokens
    wanted = asked if asked is not None else defaults.max_tokens
    return room if wanted is None else min(room, wanted)
