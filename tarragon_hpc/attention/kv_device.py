"""KV rows of a cache that torch holds, on a GPU or not: `kv_rows.KvRows` by torch operations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tarragon_hpc.wire.kv import SUM_ABSENT
from tarragon_hpc.wire.kv_sums import bad_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tarragon_hpc.attention.kv_layout import KvLayer, KvLayout

    Bytes = NDArray[np.uint8]


class _Located:
    """Slots of R tokens as torch wants them. gone: by group, which rows are in the null block."""

    def __init__(self, slots: Sequence[NDArray[np.int64]], layout: KvLayout) -> None:
        if len(slots) != len(layout.groups) or len({len(s) for s in slots}) != 1:
            raise ValueError("slots: not as many for each group, or another number of groups")
        self.rows = len(slots[0])
        self.gone = [s < g.block_tokens for s, g in zip(slots, layout.groups, strict=True)]
        self._slots = slots
        self._index: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in layout.layers:
            of_layer = slots[layer.group]
            bad = (of_layer < 0) | (of_layer >= layer.blocks * layer.block_tokens)
            if not layout.groups[layer.group].evicts:
                bad |= self.gone[layer.group]
            if bad.any():
                raise ValueError(f"slots: group {layer.group} has no slot {of_layer[bad][0]}")

    def index(self, layer: KvLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks and offsets of all rows, on the layer's device."""
        key = layer.group, layer.block_tokens
        if key not in self._index:
            both = torch.from_numpy(np.stack(np.divmod(self._slots[layer.group], key[1])))
            self._index[key] = tuple(both.to(layer.cache.device, non_blocking=True))
        return self._index[key]


class DeviceRows:
    """A cache wherever torch has it; the specification of `kernels/kv_rows.cpp`. See KvRows.

    On a GPU rows are picked in the order of the engine's stream, then go to pinned memory on a
    stream of their own, while the engine computes on; `scatter` has a third one. It has not run on
    a GPU yet. Freed blocks may be written to at once because a step is over, on the device too,
    before its tokens are known to anybody.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._caches = [_Cache(layer) for layer in layout.layers]
        device = layout.layers[0].cache.device
        self._out: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def memory(self, nbytes: int) -> Bytes:
        """See KvRows."""
        array: Bytes = torch.empty(
            nbytes, dtype=torch.uint8, pin_memory=self._out is not None
        ).numpy()
        return array

    def locate(self, slots: Sequence[NDArray[np.int64]]) -> _Located:
        """See KvRows."""
        return _Located(slots, self._layout)

    def gather(
        self, located: _Located, first_layer: int, layers: int, out: Bytes, absent: Bytes
    ) -> None:
        """See KvRows."""
        chosen = self._layout.layers[first_layer : first_layer + layers]
        if len(chosen) != layers:
            raise ValueError(f"layers: there are only {len(self._layout.layers)}")
        flags = _shaped("absent", absent, (layers, located.rows))
        flat = _shaped("out", out, (located.rows * sum(layer.row_bytes for layer in chosen),))
        at = 0
        for i, layer in enumerate(chosen):
            flags[i] = gone = located.gone[layer.group]
            rows = self._caches[first_layer + i].read(*located.index(layer))
            if gone.any():
                rows[torch.from_numpy(gone).to(rows.device)] = 0
            to = torch.from_numpy(flat[at : at + rows.numel()]).view(rows.shape)
            at += rows.numel()
            if self._out is None:
                to.copy_(rows)
                continue
            self._out.wait_stream(torch.cuda.current_stream(rows.device))
            with torch.cuda.stream(self._out):
                to.copy_(rows, non_blocking=True)
            rows.record_stream(self._out)

    def finish(self) -> None:
        """See KvRows."""
        if self._out is not None:
            self._out.synchronize()

    def scatter(
        self,
        located: _Located,
        rows: Bytes,
        sums: NDArray[np.uint32],
        keys: NDArray[np.uint64],
        positions: NDArray[np.uint32],
        *,
        check: bool,
    ) -> int:
        """See KvRows."""
        row_bytes = self._layout.row_bytes
        table = _shaped("rows", rows, (located.rows, sum(row_bytes)))
        given = _shaped("sums", sums, (located.rows, len(row_bytes)))
        bad = bad_rows(rows, row_bytes, keys, positions, sums, check=check) != 0
        bad |= given == SUM_ABSENT
        count, at = 0, 0
        with torch.cuda.stream(self._in) if self._in is not None else nullcontext():
            for i, layer in enumerate(self._layout.layers):
                wanted = ~located.gone[layer.group]
                count += int((wanted & bad[:, i]).sum())
                good = np.flatnonzero(wanted & ~bad[:, i])
                part = table[good, at : at + row_bytes[i]]
                at += row_bytes[i]
                if len(good):
                    index = torch.from_numpy(good).to(layer.cache.device)
                    block, offset = (of_all[index] for of_all in located.index(layer))
                    new = torch.from_numpy(part).to(layer.cache.device)
                    self._caches[i].write(block, offset, new)
        if self._in is not None:
            self._in.synchronize()
        return count


class _Cache:
    """A layer's tensor as integers of its element size, whose bits no copy changes."""

    def __init__(self, layer: KvLayer) -> None:
        self._kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[layer.itemsize]
        cache = layer.cache.view(self._kind)
        blocks, heads, tokens, width = cache.shape
        self._shape = (-1, heads, width)
        if layer.keys_across:
            keys, values = cache.view(blocks, heads, 2, -1).unbind(2)
            self._parts = [
                keys.view(blocks, heads, -1, tokens).transpose(2, 3),
                values.view(blocks, heads, tokens, -1),
            ]
        else:
            self._parts = [cache]

    def read(self, block: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The rows at these places, uint8 [N, row bytes], in new memory."""
        parts = [part[block, :, offset] for part in self._parts]
        return torch.cat(parts, -1).view(torch.uint8).flatten(1)

    def write(self, block: torch.Tensor, offset: torch.Tensor, rows: torch.Tensor) -> None:
        """Put rows, uint8 [N, row bytes], in these places."""
        pieces = rows.view(self._kind).view(self._shape)
        for part, piece in zip(self._parts, pieces.chunk(len(self._parts), -1), strict=True):
            part[block, :, offset] = piece


def _shaped(what: str, array: Any, shape: tuple[int, ...]) -> Any:
    """The array as a view of that shape. Raises ValueError if it has another size."""
    if array.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{what}: {array.size} numbers instead of {shape}")
    return array.reshape(shape)
