"""Our messages ↔ vLLM's: sampling parameters in, new tokens out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from tarragon_hpc.attention.structured import structured_params
from tarragon_hpc.wire.common import TokenDelta, TokenLogprobs

if TYPE_CHECKING:
    from tarragon_hpc.wire.common import SamplingSpec


def sampling_params(spec: SamplingSpec) -> Any:
    """vLLM's parameters for a sequence: new tokens as they come, no text."""
    arguments = {
        "max_tokens": spec.max_tokens,
        "min_tokens": spec.min_tokens,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "top_k": spec.top_k,
        "min_p": spec.min_p,
        "seed": spec.seed,
        "presence_penalty": spec.presence_penalty,
        "frequency_penalty": spec.frequency_penalty,
        "repetition_penalty": spec.repetition_penalty,
        "ignore_eos": spec.ignore_eos,
        "stop_token_ids": list(spec.stop_token_ids),
        "logprobs": spec.logprobs,
        "flat_logprobs": True,
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
    }
    if spec.structure is not None:
        return structured_params(spec.structure, arguments)
    return SamplingParams(**arguments)


def token_delta(output: Any, index: int, masked: int = 0, attempt: int = 1) -> TokenDelta:
    """What one engine step added to a sequence that had `index` tokens before.

    `masked`: expert calls that were left out for it meanwhile. `attempt`: of its Submit.

    `output` is vLLM's RequestOutput. Its stop_reason is the token id of a stop token, or None for
    the end-of-sequence token.
    """
    completion = output.outputs[0]
    return TokenDelta(
        request=output.request_id,
        index=index,
        token_ids=list(completion.token_ids),
        logprobs=None if completion.logprobs is None else _logprobs(completion.logprobs),
        finish=completion.finish_reason,
        stop_reason=completion.stop_reason,
        masked=masked,
        attempt=attempt,
    )


def _logprobs(flat: Any) -> list[TokenLogprobs]:
    """vLLM's FlatLogprobs: per position the chosen token, then the n most likely, it included."""
    return [
        TokenLogprobs(flat.token_ids[start:end], flat.logprobs[start:end], flat.ranks[start])
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True)
    ]
