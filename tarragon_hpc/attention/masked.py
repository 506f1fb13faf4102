"""Whose rows were computed without some of their experts (`experts.on_missing: mask`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def masked_by_request(runner: Any, masked: NDArray[np.int64]) -> dict[str, int]:
    """Left-out (layer, expert) calls of the last step by vLLM's own request id.

    masked: by row of the step. vLLM lays the rows of a request next to each other, in the order of
    its input batch (V1 model runner). A runner that does not show that order has every request of
    the step charged with all of them: an upper bound.
    """
    batch = runner.input_batch
    starts = getattr(getattr(runner, "query_start_loc", None), "np", None)
    ids = list(batch.req_ids)
    if starts is None:
        return dict.fromkeys(ids, int(masked.sum()))
    return {
        request: count
        for i, request in enumerate(ids)
        if (count := int(masked[starts[i] : starts[i + 1]].sum()))
    }
