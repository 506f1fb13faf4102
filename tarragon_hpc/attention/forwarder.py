"""What an AW needs from its forwarding engine (REFE, paper §4.2); `datapath.refe.Refe` is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Forwarder(Protocol):
    """Sends rows to the experts and brings their weighted sum back.

    One call at a time: `dispatch`, then its `combine`, both from the engine thread. Arguments are
    addresses of C-contiguous host memory, which the caller keeps valid and unchanged from
    `dispatch` until the `combine` of its ticket is over.
    """

    def dispatch(self, layer: int, rows: int, hidden: int, topk_ids: int) -> Any:
        """Send rows to the EWs of their experts; returns at once with a ticket for `combine`.

        hidden: [rows, H] in the model's dtype; topk_ids: [rows, k] int32, logical expert ids;
        layer: index of the decoder layer. Raises TransportError if an expert cannot be reached.
        """

    def combine(self, ticket: Any, weights: int, out: int) -> None:
        """Wait for the replies and write sum_k w_k E_k(x), added up in top-k order.

        weights: [rows, k] float32; out: [rows, H] in the model's dtype. Raises TransportError
        if a reply will not come; `out` is then undefined, and the ticket is used up.
        """

    def take_masked(self) -> NDArray[np.int64] | None:
        """For each row of the step, how many (layer, expert) calls were left out; None: none."""
