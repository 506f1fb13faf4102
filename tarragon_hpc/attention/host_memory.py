"""Arguments of an expert call in host memory, where the REFE can read and write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Staged:
    """One call's tensors in host memory, C-contiguous.

    hidden: [rows, H] model dtype; topk_ids: [rows, k] int32; topk_weights: [rows, k] float32;
    out: at least [rows, H] model dtype, undefined until the REFE has written its first rows.
    """

    hidden: torch.Tensor
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor
    out: torch.Tensor


class HostMemory(Protocol):
    """How the tensors of one device get into host memory and back."""

    def stage(
        self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, rows: int
    ) -> Staged:
        """The first `rows` rows of a call's arguments, readable by the host on return.

        Valid until the next `stage`.
        """

    def deliver(self, staged: Staged, like: torch.Tensor, rows: int) -> torch.Tensor:
        """The call's result, shape and device of `like`: `staged.out`, then zeros."""


class CpuMemory:
    """CPU tensors are in host memory already; nothing is copied that is laid out as promised."""

    def stage(
        self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, rows: int
    ) -> Staged:
        """See HostMemory. `out` has room for all of `hidden`'s rows: `deliver` hands it over."""
        return Staged(
            hidden[:rows].contiguous(),
            topk_ids[:rows].to(torch.int32).contiguous(),
            topk_weights[:rows].to(torch.float32).contiguous(),
            torch.empty_like(hidden, memory_format=torch.contiguous_format),
        )

    def deliver(self, staged: Staged, like: torch.Tensor, rows: int) -> torch.Tensor:
        """See HostMemory."""
        if rows < like.shape[0]:
            staged.out[rows:].zero_()
        return staged.out


class PinnedMemory:
    """CUDA tensors go through pinned buffers that are reused by every call.

    Written to the CUDA documentation's rules on stream order; it has not run on a GPU yet.
    Everything is queued on the current stream. A buffer is overwritten only by `stage`, which
    queues behind the copies of the call before it and waits for the stream, so these are over.
    """

    def __init__(self, max_rows: int, hidden: int, top_k: int, dtype: torch.dtype) -> None:
        def pinned(width: int, kind: torch.dtype) -> torch.Tensor:
            return torch.empty(max_rows, width, dtype=kind, pin_memory=True)

        self._hidden = pinned(hidden, dtype)
        self._topk_ids = pinned(top_k, torch.int32)
        self._topk_weights = pinned(top_k, torch.float32)
        self._out = pinned(hidden, dtype)
        self._copied: Any = torch.cuda.Event()

    def stage(
        self, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, rows: int
    ) -> Staged:
        """See HostMemory. Waits for the stream, so for everything this layer has computed."""
        staged = Staged(
            self._hidden[:rows],
            self._topk_ids[:rows],
            self._topk_weights[:rows],
            self._out[:rows],
        )
        staged.hidden.copy_(hidden[:rows], non_blocking=True)
        staged.topk_ids.copy_(topk_ids[:rows], non_blocking=True)
        staged.topk_weights.copy_(topk_weights[:rows], non_blocking=True)
        self._copied.record()
        self._copied.synchronize()
        return staged

    def deliver(self, staged: Staged, like: torch.Tensor, rows: int) -> torch.Tensor:
        """See HostMemory."""
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        out[:rows].copy_(staged.out, non_blocking=True)
        out[rows:].zero_()
        return out
