"""One admitted request: its sequences run, their deltas become the pieces of its choices."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.output import OutputOptions, Piece, SequenceOutput
from tarragon_hpc.gateway.sampling import check_prompt, sampling_specs, seeded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tarragon_hpc.gateway.handle import Handle
    from tarragon_hpc.gateway.metrics import GatewayMetrics
    from tarragon_hpc.gateway.sampling import Limits, SamplingDefaults
    from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
    from tarragon_hpc.gateway.sessions import Sessions
    from tarragon_hpc.gateway.state import SequenceState
    from tarragon_hpc.gateway.template import ChatTemplate
    from tarragon_hpc.gateway.text import TextCodec


@dataclass(frozen=True, slots=True)
class Service:
    """What serving a request takes. names: what the model may be called, the served name first."""

    sessions: Sessions
    codec: TextCodec | None
    template: ChatTemplate | None
    defaults: SamplingDefaults
    limits: Limits
    names: tuple[str, ...]
    metrics: GatewayMetrics

    def check_model(self, name: str | None) -> None:
        """Raises RequestError (404) unless this is the served model; None is."""
        if name is not None and name not in self.names:
            raise RequestError(
                f"model: {name[:200]!r} is not served here; {self.names[0]!r} is",
                param="model",
                code="model_not_found",
                status=404,
            )


class Generation:
    """The choices of one request; choice p * n + i is the i-th of prompt p.

    id, created: what the client is told. Use as a context manager: leaving it aborts whatever still
    runs.
    """

    def __init__(
        self,
        service: Service,
        request: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        handle: Handle,
        *,
        id: str,  # noqa: A002 - the API's name
        created: int,
    ) -> None:
        self.id = id
        self.created = created
        self.model = service.names[0]
        self.n = request.n
        self.prompts = prompts
        self.completion_tokens = [0] * len(handle.sequences)
        self._metrics = service.metrics
        options = OutputOptions(
            stop=tuple(request.stop),
            min_tokens=request.min_tokens,
            include_stop_str_in_output=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            return_tokens_as_token_ids=request.return_tokens_as_token_ids,
        )
        self._outputs = [
            SequenceOutput(service.codec, state.prompt, options) for state in handle.sequences
        ]
        self._handle = handle

    def __repr__(self) -> str:
        return f"Generation({self.id}, {self._handle})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()
        for gap in self._handle.gaps():
            self._metrics.stream_gap.observe(gap)

    @classmethod
    def admit(
        cls,
        service: Service,
        request: CompletionRequest | ChatRequest,
        prompts: list[list[int]],
        *,
        prefix: str,
        param: str,
        kept: bool,
    ) -> Self:
        """Check a request and start its sequences; kept: they are to survive the head.

        Raises what the checks and `Sessions.open` raise.
        """
        if request.stop and service.codec is None:
            raise RequestError("stop: needs a tokenizer, and the model has none", param="stop")
        service.sessions.check_count(len(prompts) * request.n)
        for prompt in prompts:
            check_prompt(prompt, service.limits, param)
        work = [
            (prompt, seeded(spec) if kept else spec)
            for prompt in prompts
            for spec in sampling_specs(request, len(prompt), service.limits, service.defaults)
        ]
        name = f"{prefix}-{request.request_id or uuid.uuid4().hex}"
        handle = service.sessions.open(work, name, kept=kept, ordered=kept and request.stream)
        return cls(service, request, prompts, handle, id=name, created=int(time.time()))

    @property
    def sequences(self) -> list[SequenceState]:
        """The sequences of the choices."""
        return self._handle.sequences

    @property
    def choices(self) -> int:
        """How many choices there are."""
        return len(self._outputs)

    def usage(self, choice: int | None = None, *, generated: int | None = None) -> dict[str, int]:
        """Token counts, of one choice or of the whole request; `generated` if not those so far.

        `masked_expert_calls` is there if some were left out (experts.on_missing: mask).
        """
        if choice is None:
            prompt = sum(map(len, self.prompts))
            completion = sum(self.completion_tokens)
        else:
            prompt = len(self.prompts[choice // self.n])
            completion = self.completion_tokens[choice]
        if generated is not None:
            completion = generated
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        choices = range(self.choices) if choice is None else [choice]
        masked = sum(map(self._handle.masked, choices))
        if masked and generated is None:
            usage["masked_expert_calls"] = masked
        return usage

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """(choice, what it adds), until all choices are finished. Raises TarragonError."""
        start = time.perf_counter()
        last: dict[int, float] = {}
        self._metrics.prompt_tokens.inc(sum(map(len, self.prompts)))
        async for delta in self._handle:
            choice = delta.sequence
            piece = self._outputs[choice].push(delta)
            if piece.finish_reason is not None and delta.finish is None:
                self._handle.abort(choice)
            self.completion_tokens[choice] += len(piece.token_ids)
            now = time.perf_counter()
            if choice in last:
                self._metrics.inter_token.observe(now - last[choice])
            else:
                self._metrics.first_token.observe(now - start)
            last[choice] = now
            self._metrics.generation_tokens.inc(len(piece.token_ids))
            yield choice, piece
        self._metrics.generation_seconds.observe(time.perf_counter() - start)

    async def collect(self) -> list[Piece]:
        """All of every choice, each as one piece. Raises TarragonError."""
        whole = [Piece() for _ in range(self.choices)]
        texts: list[list[str]] = [[] for _ in range(self.choices)]
        async for choice, piece in self.pieces():
            texts[choice].append(piece.text)
            whole[choice].token_ids += piece.token_ids
            whole[choice].scores += piece.scores
            whole[choice].finish_reason = piece.finish_reason
            whole[choice].stop_reason = piece.stop_reason
        for piece, text in zip(whole, texts, strict=True):
            piece.text = "".join(text)
        return whole
