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

_DRAW_LIMIT = 2**31


class Resumed:
    """The resumed sequences of one engine, by vLLM's own id."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._tokens: dict[str, list[int]] = {}
        self._computed: dict[str, int] = {}

    def teach(self, runners: Any, scheduler: Any) -> None:
        """Have the model runners of a module (vLLM's V1) make their states through here,
        and see what the scheduler schedules.
        """
        make, schedule = runners.CachedRequestState, scheduler.schedule

        def state(**known: Any) -> Any:
            tokens = self._tokens.pop(known["req_id"], None)
            if tokens is not None:
                known["output_token_ids"] = tokens
                if known["generator"] is not None:
                    skip_draws(known["generator"], len(tokens), self._vocab)
            return make(**known)

        def counted(*args: Any) -> Any:
            scheduled = schedule(*args)
            for internal in self._computed:
                count = scheduled.num_scheduled_tokens.get(internal, 0)
                self._computed[internal] += count
            return scheduled

        runners.CachedRequestState, scheduler.schedule = state, counted

    def begin(self, request: Any, tokens: Sequence[int]) -> None:
        """`tokens` are the output so far of a vLLM request that was never scheduled."""
        self._computed[request.request_id] = 0
        if tokens:
            request.append_output_token_ids(list(tokens))
            self._tokens[request.request_id] = list(tokens)
            # vLLM counts how much of a prompt was cached, and takes more than that for a mistake.
            request.prefill_stats = None

    def computed(self, internal: str) -> int:
        """How many of its positions ran through the model until its first new token came."""
        return self._computed.pop(internal)

    def forget(self, internal: str) -> None:
        """The sequence has ended."""
        self._tokens.pop(internal, None)
        self._computed.pop(internal, None)


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
