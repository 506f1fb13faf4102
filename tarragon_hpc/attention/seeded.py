"""Seeded sampling together with chunked prefill on CPUs, where vLLM 0.32 fails.

A sequence whose prompt is not through yet is sampled with the others and the token thrown away;
vLLM then takes the draw back by the generator's offset, which CPU generators do not have: the step
raises, and the engine is lost. Here such sequences are sampled without their generator instead, so
that it still stands at its first draw when the first real token is due.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def keep_generators(runner: Any) -> None:
    """Have a CPU model runner draw from a sequence's generator only for tokens it will keep."""
    sample = runner.sample_tokens

    def sample_tokens(grammar_output: Any) -> Any:
        batch = runner.input_batch
        partial = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
        held = {i: batch.generators.pop(i) for i in partial if i in batch.generators}
        try:
            return sample(grammar_output)
        finally:
            batch.generators.update(held)

    runner.sample_tokens = sample_tokens
