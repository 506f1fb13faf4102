"""Experts on a GPU: weights in device memory, rows staged through pinned host memory.

The slots of the channels lie in host memory, so a batch is: the dispatches it needs copied to a
pinned buffer, one transfer to the device, the two kernels of `triton_ffn`, one transfer back, rows
copied to the reply slots. Checked in Triton's interpreter; no GPU has run it yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tarragon_hpc.ops import memory
from tarragon_hpc.ops.tensors import ITEMSIZE, check, nbytes
from tarragon_hpc.ops.triton_ffn import TILE_ROWS, LayerWeights, grouped_ffn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors, Segment


class CudaBank:
    """An `ExpertBank` in the memory of one GPU; the arrays given are not needed afterwards.

    Raises ModelError for tensors that do not fit `shape`, and torch.OutOfMemoryError. (A device of
    "cpu" works in Triton's interpreter only.)
    """

    def __init__(
        self,
        tensors: Mapping[tuple[int, int], ExpertTensors],
        shape: ExpertShape,
        device: str = "cuda",
    ) -> None:
        self._shape = shape
        self._name = check(tensors, shape)
        self._dtype = getattr(torch, self._name)
        self._row = shape.hidden * ITEMSIZE[self._name]
        self._device = torch.device(device)
        self._nbytes = nbytes(tensors)
        self._place: dict[tuple[int, int], int] = {}
        self._layers: dict[int, LayerWeights] = {}
        for layer in sorted({layer for layer, _ in tensors}):
            experts = sorted(e for at, e in tensors if at == layer)
            self._place |= {(layer, e): i for i, e in enumerate(experts)}
            self._layers[layer] = self._upload([tensors[layer, e] for e in experts])

    def __repr__(self) -> str:
        return f"CudaBank({len(self._place)} x (layer, expert), {self._name}, {self._device})"

    def experts(self) -> frozenset[int]:
        """Ids of the loaded experts."""
        return frozenset(expert for _, expert in self._place)

    def run(self, layer: int, segments: list[Segment]) -> None:
        """See `ExpertBank.run`."""
        for s in segments:
            if (layer, s.expert) not in self._place:
                raise KeyError(f"layer {layer} expert {s.expert} is not loaded")
        batch = sorted((s for s in segments if s.count), key=lambda s: s.expert)
        if not batch:
            return
        x, source = self._stage_rows(batch)
        tiles = self._tiles(layer, batch)
        pairs = len(source)
        y = self._empty(pairs, self._shape.hidden)
        grouped_ffn(
            self._shape,
            self._layers[layer],
            x.to(self._device, non_blocking=True),
            self._stage(source).to(self._device, non_blocking=True),
            self._stage(tiles).to(self._device, non_blocking=True),
            self._empty(pairs, self._shape.ffn),
            y,
        )
        out = self._host(y.shape, self._dtype)
        out.copy_(y, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        memory.scatter(batch, out.view(torch.uint8).numpy())

    def nbytes(self) -> int:
        """Bytes of weights in device memory."""
        return self._nbytes

    def _upload(self, experts: list[ExpertTensors]) -> LayerWeights:
        def stack(arrays: list[NDArray[np.generic] | None]) -> torch.Tensor | None:
            given = [a for a in arrays if a is not None]
            if not given:
                return None
            out = self._empty(len(given), *given[0].shape)
            for i, array in enumerate(given):
                out[i].copy_(memory.tensor(array, self._dtype))
            return out

        gate, up, down, gate_bias, up_bias, down_bias = (
            stack([getattr(e, name) for e in experts])
            for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
        )
        assert gate is not None
        assert up is not None
        assert down is not None
        return LayerWeights(gate, up, down, gate_bias, up_bias, down_bias)

    def _stage_rows(self, batch: list[Segment]) -> tuple[torch.Tensor, NDArray[np.int32]]:
        """All dispatches' rows in pinned memory, each dispatch once, and each pair's row there."""
        indices = [memory.index_of(s) for s in batch]
        rows: dict[int, int] = {}
        for s, index in zip(batch, indices, strict=True):
            rows[s.x] = max(rows.get(s.x, 0), int(index.max()) + 1)
        x = self._host((sum(rows.values()), self._shape.hidden), self._dtype)
        host = x.view(torch.uint8).numpy().reshape(-1, self._row)
        start: dict[int, int] = {}
        first = 0
        for address, count in rows.items():
            start[address] = first
            host[first : first + count].reshape(-1)[:] = memory.at(address, count * self._row)
            first += count
        source = [index + start[s.x] for s, index in zip(batch, indices, strict=True)]
        return x, np.concatenate(source).astype(np.int32)

    def _tiles(self, layer: int, batch: list[Segment]) -> NDArray[np.int32]:
        """For each tile: the place of its expert, its first pair, its number of pairs."""
        pairs: dict[int, int] = {}
        for s in batch:
            pairs[s.expert] = pairs.get(s.expert, 0) + s.count
        tiles = []
        first = 0
        for expert, count in pairs.items():
            place = self._place[layer, expert]
            tiles += [
                (place, first + at, min(TILE_ROWS, count - at)) for at in range(0, count, TILE_ROWS)
            ]
            first += count
        return np.array(tiles, np.int32)

    def _stage(self, array: NDArray[np.int32]) -> torch.Tensor:
        host = self._host(array.shape, torch.int32)
        host.numpy()[:] = array
        return host

    def _host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Pinned memory; torch keeps and reuses it, and not before the device is done with it."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)
