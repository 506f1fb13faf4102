"""One way to route: a table, seen from an AW that knows whom it can reach and whom it avoids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarragon_hpc.datapath.rows import Router, make_router
from tarragon_hpc.wire import dispatch as wire

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    import numpy as np
    from numpy.typing import NDArray

    from tarragon_hpc.datapath.ert import ERT


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """owners: int32 [experts], indices in `workers`; its length where nobody serves an expert."""

    epoch: int
    workers: tuple[str, ...]
    owners: NDArray[np.int32]
    top_k: int
    row_bytes: int
    router: Router

    def name(self, index: int) -> str:
        """The EW with this index; empty: nobody."""
        return self.workers[index] if index < len(self.workers) else ""


def owners_of(ert: ERT, lost: Set[str], avoid: Sequence[str]) -> NDArray[np.int32]:
    """Who serves which expert, as in `Routes.owners` (with `ert.workers`)."""
    workers = ert.workers
    return ert.owners(workers, lost, avoid, nobody=len(workers))


def make_routes(
    ert: ERT,
    lost: Set[str],
    avoid: Sequence[str],
    *,
    top_k: int,
    hidden: int,
    dtype: str,
    incarnation: int,
) -> Routes:
    """Routes by this table, around the EWs that are lost or (where possible) to be avoided."""
    owners = owners_of(ert, lost, avoid)
    router = make_router(
        owners,
        len(ert.workers) + 1,
        top_k=top_k,
        hidden=hidden,
        dtype=dtype,
        incarnation=incarnation,
        epoch=ert.epoch,
    )
    row_bytes = hidden * wire.DTYPES[dtype][1]
    return Routes(ert.epoch, ert.workers, owners, top_k, row_bytes, router)
