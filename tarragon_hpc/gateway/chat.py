"""POST /v1/chat/completions: its conversation and the shape of its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.gateway.formats import envelope
from tarragon_hpc.gateway.generation import Generation
from tarragon_hpc.gateway.prompts import encode_chat

if TYPE_CHECKING:
    from tarragon_hpc.gateway.generation import Service
    from tarragon_hpc.gateway.output import Piece, TokenScore
    from tarragon_hpc.gateway.schema import ChatRequest

_ROLE = "assistant"
_CHUNK = "chat.completion.chunk"


async def open_chat(
    service: Service, request: ChatRequest, *, kept: bool
) -> tuple[Generation, ChatFormat]:
    """Admit a request. Nothing is waited for once its sequences run. Raises TarragonError."""
    service.check_model(request.model)
    prompt = await encode_chat(request, service.codec, service.template, service.limits.max_len)
    generation = Generation.admit(
        service, request, [prompt], prefix="chatcmpl", param="messages", kept=kept
    )
    return generation, ChatFormat(request, generation)


class ChatFormat:
    """Chat completions, as OpenAI has them with vLLM's additions (stop_reason, token ids)."""

    def __init__(self, request: ChatRequest, generation: Generation) -> None:
        self._generation = generation
        self._logprobs = request.logprobs
        self._top = request.top_logprobs
        self._token_ids = request.return_token_ids

    def opening(self) -> list[dict[str, Any]]:
        """The role of each choice."""
        chunks = []
        for i in range(self._generation.choices):
            delta = {"role": _ROLE, "content": ""}
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None}
            chunks.append(self._with_prompt(envelope(self._generation, _CHUNK, [choice])))
        return chunks

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        fields = {"index": choice, "delta": {"content": piece.text}} | self._rest(piece)
        return envelope(self._generation, _CHUNK, [fields])

    def usage_chunk(self) -> dict[str, Any]:
        return envelope(self._generation, _CHUNK, []) | {"usage": self._generation.usage()}

    def response(self, pieces: list[Piece]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": {"role": _ROLE, "content": piece.text, "refusal": None},
            }
            | self._rest(piece)
            for i, piece in enumerate(pieces)
        ]
        answer = envelope(self._generation, "chat.completion", choices)
        return self._with_prompt(answer | {"usage": self._generation.usage()})

    def _rest(self, piece: Piece) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "logprobs": self._scores(piece.scores) if self._logprobs else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._token_ids:
            fields["token_ids"] = piece.token_ids
        return fields

    def _with_prompt(self, answer: dict[str, Any]) -> dict[str, Any]:
        if self._token_ids:
            answer["prompt_token_ids"] = self._generation.prompts[0]
        return answer

    def _scores(self, scores: list[TokenScore]) -> dict[str, Any]:
        return {
            "content": [
                _entry(score.chosen)
                | {"top_logprobs": [_entry(s) for s in score.ranked[: self._top]]}
                for score in scores
            ]
        }


def _entry(scored: tuple[str, float]) -> dict[str, Any]:
    text, logprob = scored
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
