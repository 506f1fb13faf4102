"""The expert calls of one engine: which rows go out, and whether the step still counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tarragon_hpc.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tarragon_hpc.attention.forwarder import Forwarder
    from tarragon_hpc.attention.host_memory import HostMemory, Staged


def _nothing() -> None:
    pass


class Call(NamedTuple):
    """An expert call between its dispatch and its combine."""

    ticket: Any
    staged: Staged
    rows: int


class ExpertCalls:
    """Carries the MoE layers' calls to the forwarder.

    Until `serving` is set all calls answer zeros without going out: the engine profiles and
    captures itself with made-up tokens. Once a call has failed, the step is lost: its remaining
    calls answer zeros too, so that it ends soon, and `take_loss` tells that nothing it produced
    may be used. One thread.

    Three hooks for who has something to do around a call: `on_dispatched` (rows are on their way),
    `meanwhile` (the answers are not awaited yet), `on_combined` (they have come). They must be
    quick and must not raise.
    """

    def __init__(
        self, forwarder: Forwarder, memory: HostMemory, real_rows: Callable[[int], int]
    ) -> None:
        """`real_rows(padded)`: how many of the step's rows belong to a request, 0 in a dry run."""
        self._forwarder = forwarder
        self._memory = memory
        self._real_rows = real_rows
        self._loss: TransportError | None = None
        self.serving = False
        self.on_dispatched: Callable[[], None] = _nothing
        self.on_combined: Callable[[], None] = _nothing
        self.meanwhile: Callable[[], None] = _nothing

    @property
    def lost(self) -> bool:
        """Whether the step under way is lost."""
        return self._loss is not None

    def take_loss(self) -> TransportError | None:
        """Why the step since the last call is lost, or None; the next step starts clean."""
        loss, self._loss = self._loss, None
        return loss

    def dispatch(
        self, layer: int, hidden: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> Call | None:
        """Send a layer's rows out; None if nothing goes out.

        hidden: [T, H]; topk_ids, topk_weights: [T, k], with T padded rows.
        """
        if not self.serving or self._loss is not None:
            return None
        rows = self._real_rows(hidden.shape[0])
        if rows == 0:
            return None
        staged = self._memory.stage(hidden, topk_ids, topk_weights, rows)
        try:
            ticket = self._forwarder.dispatch(
                layer, rows, staged.hidden.data_ptr(), staged.topk_ids.data_ptr()
            )
        except TransportError as error:
            self._loss = error
            return None
        self.on_dispatched()
        return Call(ticket, staged, rows)

    def combine(self, call: Call | None, hidden: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the experts' outputs for the dispatched `hidden`: [T, H]."""
        if call is None:
            return torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        self.meanwhile()
        try:
            self._forwarder.combine(
                call.ticket, call.staged.topk_weights.data_ptr(), call.staged.out.data_ptr()
            )
        except TransportError as error:
            self._loss = error
            return torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        finally:
            self.on_combined()
        return self._memory.deliver(call.staged, hidden, call.rows)
