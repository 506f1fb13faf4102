"""The requests of the API. Every field is one that has an effect here; the rest is in `fields`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tarragon_hpc.errors import RequestError

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
# vLLM's default for max_logprobs, which the AWs run with.
MAX_LOGPROBS = 20
MAX_STOPS = 64


class _Part(BaseModel):
    """No conversions of type, no unknown names."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Part):
    """What a stream carries besides its choices. `include_obfuscation` is accepted, not done."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Part):
    """OpenAI's json_schema. `name`, `description` and `strict` change nothing: vLLM is strict."""

    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Part):
    """OpenAI's response_format. `json_schema` has an effect with the type of that name only."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Part):
    """vLLM's structured_outputs, one of them at a time; its options are not built."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None
    disable_any_whitespace: Literal[False] = False
    disable_additional_properties: Literal[False] = False
    whitespace_pattern: None = None
    structural_tag: None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Id = Annotated[int, Field(ge=0)]
_Stop = Annotated[
    list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed), Field(max_length=MAX_STOPS)
]


class GenerationRequest(_Part):
    """What both kinds of request have. None of a sampling field means the model's default."""

    model: str | None = None
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    resumable: bool = False
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: _Stop = []
    stop_token_ids: Annotated[list[_Id], Field(max_length=1024)] = []
    include_stop_str_in_output: bool = False
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    request_id: str | None = Field(None, min_length=1, max_length=128)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _streaming_only(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options: is allowed with stream=true only", param="stream_options"
            )
        if self.resumable and not self.stream:
            raise RequestError("resumable: is allowed with stream=true only", param="resumable")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. `prompt` is checked by `prompts.completion_prompts`."""

    prompt: Any
    max_tokens: int = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True


class TextPart(_Part):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


def _in_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(_Part):
    """One message of a conversation. Content is text, or a list of parts of type text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_in_parts)] = []
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates want it: content in one string, parts joined by newlines."""
        message = {"role": self.role, "content": "\n".join(part.text for part in self.content)}
        return message if self.name is None else message | {"name": self.name}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = False
    add_generation_prompt: bool = True
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise RequestError(
                "top_logprobs: is allowed with logprobs=true only", param="top_logprobs"
            )
        return self
