"""POST /v1/completions: its prompts and the shape of its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tarragon_hpc.gateway.formats import envelope
from tarragon_hpc.gateway.generation import Generation
from tarragon_hpc.gateway.prompts import encode_completion

if TYPE_CHECKING:
    from tarragon_hpc.gateway.generation import Service
    from tarragon_hpc.gateway.output import Piece, TokenScore
    from tarragon_hpc.gateway.schema import CompletionRequest


async def open_completion(
    service: Service, request: CompletionRequest, *, kept: bool
) -> tuple[Generation, CompletionFormat]:
    """Admit a request. Nothing is waited for once its sequences run. Raises TarragonError."""
    service.check_model(request.model)
    prompts = await encode_completion(request, service.codec, service.limits.max_len)
    generation = Generation.admit(
        service, request, prompts, prefix="cmpl", param="prompt", kept=kept
    )
    return generation, CompletionFormat(request, generation)


class CompletionFormat:
    """Completions, as OpenAI has them with vLLM's additions (stop_reason, token ids)."""

    def __init__(self, request: CompletionRequest, generation: Generation) -> None:
        self._generation = generation
        self._logprobs = request.logprobs is not None
        self._token_ids = request.return_token_ids
        self._offsets = [0] * generation.choices
        self._started = [False] * generation.choices

    def opening(self) -> list[dict[str, Any]]:
        return []

    def chunk(self, choice: int, piece: Piece) -> dict[str, Any]:
        return envelope(self._generation, "text_completion", [self._choice(choice, piece)])

    def usage_chunk(self) -> dict[str, Any]:
        chunk = envelope(self._generation, "text_completion", [])
        return chunk | {"usage": self._generation.usage()}

    def response(self, pieces: list[Piece]) -> dict[str, Any]:
        choices = [self._choice(i, piece) for i, piece in enumerate(pieces)]
        answer = envelope(self._generation, "text_completion", choices)
        return answer | {"usage": self._generation.usage()}

    def _choice(self, choice: int, piece: Piece) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "index": choice,
            "text": piece.text,
            "logprobs": self._scores(choice, piece.scores) if self._logprobs else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._token_ids:
            fields["token_ids"] = piece.token_ids
            if not self._started[choice]:
                fields["prompt_token_ids"] = self._generation.prompts[choice // self._generation.n]
        self._started[choice] = True
        return fields

    def _scores(self, choice: int, scores: list[TokenScore]) -> dict[str, Any]:
        """text_offset counts the characters of the tokens so far, as vLLM does."""
        offsets = []
        for score in scores:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(score.chosen[0])
        return {
            "text_offset": offsets,
            "token_logprobs": [score.chosen[1] for score in scores],
            "tokens": [score.chosen[0] for score in scores],
            "top_logprobs": [_best_per_text(score) for score in scores],
        }


def _best_per_text(score: TokenScore) -> dict[str, float]:
    """Two tokens may have the same text; the chosen one counts, then the likelier one."""
    return dict([*reversed(score.ranked), score.chosen])
