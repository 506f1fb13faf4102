"""Whether to fetch a sequence's KV from a store or to compute it anew. Pure."""

from __future__ import annotations

# What a restore costs beside the transfer: the look, and two steps until vLLM goes on with it.
_OVERHEAD_S = 0.01


def worth_restoring(
    tokens: int, nbytes: int, *, bytes_per_s: float | None, tokens_per_s: float | None
) -> bool:
    """Whether `nbytes` from a store are there before `tokens` tokens are computed.

    bytes_per_s, tokens_per_s: measured here, None if nothing was yet; then the store is asked,
    since that is how it is learnt.
    """
    if bytes_per_s is None or tokens_per_s is None:
        return True
    return _OVERHEAD_S + nbytes / bytes_per_s <= tokens / tokens_per_s
