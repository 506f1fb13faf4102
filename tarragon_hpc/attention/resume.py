"""Sequences that another AW had begun: vLLM goes on with them as after a preemption of its own.

To vLLM's scheduler a resumed sequence is one that has produced tokens and lost its KV cache; it
knows that from preemption, so lengths, stop conditions and the grammar of a structured output
follow by themselves once the tokens are there. Its V1 model runner does not: it meets the sequence
for the first time and takes it for one without output. Here, and only for such sequences, the
runner's state of a new sequence is made with the tokens it has produced (penalties, min_tokens) and
with a generator that has made their draws (seeds). The V2 runner is told the tokens by the
scheduler and draws by position, so it is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_DRAW_LIMIT = 2**31


class Resumed:
    """The output of resumed sequences, by vLLM's own id, until the model runner has met them."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._tokens: dict[str, list[int]] = {}

    def teach(self, runners: ModuleType) -> None:
        """Have the V1 model runners, which live in this module, make their states through here."""
        make = runners.CachedRequestState

        def state(**known: Any) -> Any:
            tokens = self._tokens.pop(known["req_id"], None)
            if tokens is not None:
                known["output_token_ids"] = tokens
                if known["generator"] is not None:
                    skip_draws(known["generator"], len(tokens), self._vocab)
            return make(**known)

        runners.CachedRequestState = state

    def note(self, request: Any, tokens: Sequence[int]) -> None:
        """`tokens` are the output so far of a vLLM request that was never scheduled."""
        request.append_output_token_ids(list(tokens))
        self._tokens[request.request_id] = list(tokens)

    def forget(self, internal: str) -> None:
        """The sequence ended before it was scheduled."""
        self._tokens.pop(internal, None)


def skip_draws(generator: torch.Generator, draws: int, vocab: int) -> None:
    """Bring a fresh generator to where vLLM's sampler leaves it after so many tokens.

    The CPU sampler draws one integer per token; the native one, used for seeded sequences on GPUs,
    a row of exponential noise (vllm/v1/sample/ops/topk_topp_sampler.py).
    """
    if generator.device.type == "cpu":
        for _ in range(draws):
            torch.randint(0, _DRAW_LIMIT, (1,), generator=generator, dtype=torch.long)
        return
    row = torch.empty(vocab, device=generator.device, dtype=torch.float32)
    for _ in range(draws):
        row.exponential_(generator=generator)
