"""From the deltas of one sequence to what a client is told: text, tokens, log probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tarragon_hpc.gateway.stops import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tarragon_hpc.gateway.state import Delta
    from tarragon_hpc.gateway.text import TextCodec
    from tarragon_hpc.wire.common import TokenLogprobs


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How a request wants its output to be presented; the names are the API's."""

    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_tokens_as_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One position's log probabilities, each (text, log probability).

    ranked: the chosen token and the likeliest ones, best first. If k were asked for these are k, or
    k + 1 if the chosen token is not among the k likeliest.
    """

    chosen: tuple[str, float]
    ranked: list[tuple[str, float]]


@dataclass(slots=True)
class Piece:
    """What a sequence adds to its choice. finish_reason is set on the last one."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class SequenceOutput:
    """Decodes one sequence and looks for its stop strings. Feed every delta once, in order.

    Without a tokenizer the text is empty and tokens are named by their ids.
    """

    def __init__(
        self, codec: TextCodec | None, prompt: Sequence[int], options: OutputOptions
    ) -> None:
        self._codec = codec
        self._options = options
        self._stops = StopMatcher(options.stop, include=options.include_stop_str_in_output)
        self._decoder = (
            codec.decoder(prompt, skip_special_tokens=options.skip_special_tokens)
            if codec is not None
            else None
        )
        self._tokens: list[int] = []

    def push(self, delta: Delta) -> Piece:
        """The piece that a delta adds. If it ends with a stop string the sequence is to be aborted.

        Tokens after the one that completed a stop string are dropped, as if never generated. The
        token that the engine stopped at (EOS or a stop token) has no text, unless the request
        wants the stop in its output.
        """
        piece = Piece(finish_reason=delta.finish, stop_reason=delta.stop_reason)
        silent = delta.finish == "stop" and not self._options.include_stop_str_in_output
        text: list[str] = []
        for i, token in enumerate(delta.token_ids):
            if delta.logprobs:
                piece.scores.append(self._score(delta.logprobs[i]))
            self._tokens.append(token)
            piece.token_ids.append(token)
            if self._decoder is not None and not (silent and i == len(delta.token_ids) - 1):
                may_stop = len(self._tokens) > self._options.min_tokens
                text.append(self._stops.push(self._decoder.push(token), may_stop=may_stop))
            if self._stops.found is not None:
                piece.finish_reason, piece.stop_reason = "stop", self._stops.found
                break
        if piece.finish_reason is not None:
            text.append(self._stops.flush())
        piece.text = "".join(text)
        return piece

    def _score(self, entry: TokenLogprobs) -> TokenScore:
        values = dict(zip(entry.token_ids, entry.logprobs, strict=True))
        ranked = sorted(values, key=values.__getitem__, reverse=True)
        named = {token: self._name(token, values[token]) for token in ranked}
        return TokenScore(named[entry.token_ids[0]], list(named.values()))

    def _name(self, token: int, logprob: float) -> tuple[str, float]:
        if self._codec is None or self._options.return_tokens_as_token_ids:
            name = f"token_id:{token}"
        else:
            name = self._codec.token_text(token, self._tokens)
        # JSON has no infinity; this is the value that vLLM and OpenAI use for it.
        return name, max(logprob, -9999.0)
