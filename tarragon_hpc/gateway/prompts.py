"""The prompts of a request as token ids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.fields import shown

if TYPE_CHECKING:
    from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
    from tarragon_hpc.gateway.template import ChatTemplate
    from tarragon_hpc.gateway.text import TextCodec

# Longer texts are encoded in a thread, so that other requests' tokens do not wait for them.
_LONG_TEXT = 16_384


def completion_prompts(value: Any) -> list[str | list[int]]:
    """The prompts in the field `prompt`: text, token ids, or a list of either.

    Raises RequestError. Pure.
    """
    if isinstance(value, str):
        prompts: list[Any] = [value]
    elif isinstance(value, list) and value and all(type(v) is int for v in value):
        prompts = [value]
    elif isinstance(value, list):
        prompts = value
    else:
        prompts = []
    kinds = {type(p) for p in prompts}
    if kinds == {list} and not all(type(t) is int for p in prompts for t in p):
        kinds = set()
    if kinds != {str} and kinds != {list}:
        raise RequestError(
            "prompt: must be a string, a list of strings, a list of token ids or a list of lists of"
            f" token ids (got {shown(value)})",
            param="prompt",
        )
    if not all(prompts):
        raise RequestError("prompt: must not be empty", param="prompt")
    return prompts


async def encode_completion(
    request: CompletionRequest, codec: TextCodec | None, max_len: int
) -> list[list[int]]:
    """Token ids of every prompt; `max_len` is the model's context. Raises RequestError."""
    special = request.add_special_tokens
    return [
        await _encode(codec, prompt, special=special, param="prompt", max_len=max_len)
        if isinstance(prompt, str)
        else prompt
        for prompt in completion_prompts(request.prompt)
    ]


async def encode_chat(
    request: ChatRequest, codec: TextCodec | None, template: ChatTemplate | None, max_len: int
) -> list[int]:
    """Token ids of a conversation; `max_len` is the model's context. Raises RequestError."""
    if template is None:
        raise RequestError(
            "messages: the model has no chat template; use /v1/completions", param="messages"
        )
    variables = dict(request.chat_template_kwargs)
    if request.reasoning_effort is not None:
        if not template.uses("reasoning_effort"):
            raise RequestError(
                "reasoning_effort: the model's chat template has no use for it",
                param="reasoning_effort",
                code="unsupported_parameter",
            )
        variables["reasoning_effort"] = request.reasoning_effort
    text = template.render(
        [message.plain() for message in request.messages],
        add_generation_prompt=request.add_generation_prompt,
        variables=variables,
    )
    special = request.add_special_tokens
    return await _encode(codec, text, special=special, param="messages", max_len=max_len)


async def _encode(
    codec: TextCodec | None, text: str, *, special: bool, param: str, max_len: int
) -> list[int]:
    if codec is None:
        raise RequestError(
            f"{param}: the model has no tokenizer (tokenizer.json); send token ids to"
            " /v1/completions",
            param=param,
        )
    if not codec.may_fit(text, max_len):
        raise RequestError(
            f"{param}: {len(text)} characters are more than the model's context of {max_len} tokens"
            " can hold",
            param=param,
            code="context_length_exceeded",
        )
    if len(text) < _LONG_TEXT:
        return codec.encode(text, add_special_tokens=special)
    return await asyncio.to_thread(codec.encode, text, add_special_tokens=special)
