"""Which fields a request may have, and what is said about those it may not. Pure.

A field that would change the answer and is not built is refused with its name: an answer that
silently ignores it would be wrong. Fields that change nothing are accepted.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.schema import GenerationRequest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

R = TypeVar("R", bound=GenerationRequest)

# Bookkeeping and hints of the OpenAI API and of vLLM that change no token.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "stream_interval",
        "user",
    }
)

# Fields of the OpenAI API and of vLLM that are not built, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "ec_transfer_params": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprob_token_ids": ([],),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "routed_experts_prompt_start": (0,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "thinking_token_budget": (-1,),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}

# Fields of older vLLMs, and what has taken their place. vLLM itself ignores them now.
_REMOVED = {
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
}

# The same for the fields of a message, as clients send back what they were answered.
_MESSAGE_EMPTY = ("annotations", "audio", "function_call", "reasoning", "refusal", "tool_calls")


def read_request(model: type[R], body: Any) -> R:
    """A checked request from decoded JSON. Raises RequestError that names the field at fault.

    A null is the same as leaving the field out.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, not {_kind(body)}")
    try:
        return model.model_validate(_known_fields(model, body))
    except ValidationError as error:
        raise _explain(error.errors(include_url=False)[0]) from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None


def shown(value: Any) -> str:
    """A JSON value as a message quotes it: short, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "a value nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."


def _known_fields(model: type[GenerationRequest], body: dict[str, Any]) -> dict[str, Any]:
    """The fields that the model has and that are not null; raises about those that it has not."""
    known = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in model.model_fields:
            known[name] = value
        elif name not in UNSUPPORTED:
            raise _unknown(name, model)
        elif value not in UNSUPPORTED[name]:
            raise _refusal(name, value)
    if isinstance(known.get("messages"), list):
        known["messages"] = [_plain_message(i, m) for i, m in enumerate(known["messages"])]
    return known


def _plain_message(position: int, message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    for name in _MESSAGE_EMPTY:
        if message.get(name):
            raise RequestError(
                f"messages[{position}].{name}: is not supported",
                param=f"messages[{position}].{name}",
                code="unsupported_parameter",
            )
    return {k: v for k, v in message.items() if v is not None and k not in _MESSAGE_EMPTY}


def _refusal(name: str, value: Any) -> RequestError:
    allowed = " or ".join(shown(v) for v in UNSUPPORTED[name])
    hint = f"; only {allowed} is allowed" if allowed else ""
    return RequestError(
        f"{name}: is not supported by this service (got {shown(value)}){hint}",
        param=name,
        code="unsupported_parameter",
    )


def _unknown(name: str, model: type[GenerationRequest]) -> RequestError:
    if name in _REMOVED:
        return RequestError(
            f"{name}: vLLM has removed it; use {_REMOVED[name]}",
            param=name,
            code="unsupported_parameter",
        )
    close = difflib.get_close_matches(name, model.model_fields, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return RequestError(
        f"{shown(name)}: unrecognized request argument{hint}",
        param=name[:80],
        code="unknown_parameter",
    )


def _explain(detail: ErrorDetails) -> RequestError:
    """The one-line error of a field, with its path, what is allowed and what was given."""
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in detail["loc"])[1:]
    if detail["type"] == "missing":
        problem = "is required"
    elif detail["type"] == "extra_forbidden":
        problem = "unrecognized request argument"
    elif detail["type"] == "model_type":
        problem = f"must be an object (got {shown(detail['input'])})"
    else:
        problem = detail["msg"][:1].lower() + detail["msg"][1:]
        problem = f"{problem.replace('input should', 'must')} (got {shown(detail['input'])})"
    return RequestError(f"{path}: {problem}", param=path)


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
