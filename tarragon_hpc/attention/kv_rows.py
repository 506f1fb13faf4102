"""KV rows out of vLLM's paged cache and into it: by native code on the CPU, by torch elsewhere.

`KvRows` says what both do, `make_rows` picks one. `gather`, `finish` and `locate` before them are
the engine thread's; `locate` and `scatter` may be called by another thread at the same time, for
slots that no step uses meanwhile. All arrays are C-contiguous; their shapes are what they hold,
any shape of that size will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tarragon_hpc import native
from tarragon_hpc.attention.kv_device import DeviceRows
from tarragon_hpc.wire.kv_sums import bad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tarragon_hpc.attention.kv_layout import KvLayout

    Bytes = NDArray[np.uint8]


class KvRows(Protocol):
    """Rows of R tokens at a time."""

    def memory(self, nbytes: int) -> Bytes:
        """Host memory that `gather` writes to without waiting."""

    def locate(self, slots: Sequence[NDArray[np.int64]]) -> Any:
        """What `gather` and `scatter` want to know of the slots of R tokens, [R] for each group.

        Good for all layers. Raises ValueError for a slot that the cache does not have, and for
        one in the null block of a group that does not evict.
        """

    def gather(
        self, located: Any, first_layer: int, layers: int, out: Bytes, absent: Bytes
    ) -> None:
        """Copy the rows of some layers: out is [layers][R][row bytes of the layer].

        absent: uint8 [layers, R], 1 where the row is in the null block: zeros then. `out` is
        complete after `finish`. Raises ValueError if a length does not fit.
        """

    def finish(self) -> None:
        """Wait for everything gathered so far."""

    def scatter(
        self,
        located: Any,
        rows: Bytes,
        sums: NDArray[np.uint32],
        keys: NDArray[np.uint64],
        positions: NDArray[np.uint32],
        *,
        check: bool,
    ) -> int:
        """Check and write rows of all layers, as a Fetch brings them; returns how many are bad.

        rows: [R][layers][row bytes]; sums: [R, layers]; keys, positions: [R]. Rows for the null
        block are not wanted. Of the others those are bad, and not written, that `bad_rows` says
        are, or that are absent. All is written on return. Raises ValueError if a length does not
        fit, before anything is written.
        """


def make_rows(layout: KvLayout) -> KvRows:
    """The fastest there is for where the cache is."""
    on_cpu = all(layer.cache.device.type == "cpu" for layer in layout.layers)
    return NativeRows(layout) if on_cpu and native.reason is None else DeviceRows(layout)


class NativeRows:
    """A cache in host memory. See KvRows."""

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout  # its tensors stay
        self._row_bytes = layout.row_bytes
        self._layers = native.module.KvLayers(
            [
                (
                    layer.cache.data_ptr(), layer.keys_across, layer.group, layer.blocks,
                    layer.block_tokens, layer.block_stride, layer.heads, layer.head_stride,
                    layer.token_stride, layer.piece_bytes, layer.itemsize,
                )
                for layer in layout.layers
            ],
            [(group.block_tokens, group.evicts) for group in layout.groups],
        )  # fmt: skip

    def memory(self, nbytes: int) -> Bytes:
        """See KvRows."""
        return np.empty(nbytes, np.uint8)

    def locate(self, slots: Sequence[NDArray[np.int64]]) -> Any:
        """See KvRows."""
        return self._layers.locate(slots)

    def gather(
        self, located: Any, first_layer: int, layers: int, out: Bytes, absent: Bytes
    ) -> None:
        """See KvRows."""
        self._layers.gather(located, first_layer, layers, out, absent)

    def finish(self) -> None:
        """See KvRows. `gather` has done it all."""

    def scatter(
        self,
        located: Any,
        rows: Bytes,
        sums: NDArray[np.uint32],
        keys: NDArray[np.uint64],
        positions: NDArray[np.uint32],
        *,
        check: bool,
    ) -> int:
        """See KvRows."""
        bad = bad_rows(rows, self._row_bytes, keys, positions, sums, check=check)
        return self._layers.scatter(located, rows, sums, bad)
