"""Experts on a GPU: weights in device memory, rows staged through pinned host memory.

The slots of the channels lie in host memory, so a batch is: the dispatches it needs copied to a
pinned buffer, one transfer to the device, the two kernels of `triton_ffn`, one transfer back, rows
copied to the reply slots. Checked in Triton's interpreter; no GPU has run it yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from tarragon_hpc.ops import memory
from tarragon_hpc.ops.tensors import ITEMSIZE, check, check_more, nbytes
from tarragon_hpc.ops.triton_ffn import TILE_ROWS, LayerWeights, grouped_ffn

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from tarragon_hpc.models.spec import ExpertShape
    from tarragon_hpc.ops.base import ExpertTensors, Segment

    # By layer: experts and their weights, stacked in this order.
    _Uploaded: TypeAlias = Mapping[int, tuple[list[int], LayerWeights]]


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
        self._each = nbytes(tensors) // len(tensors)
        self._place: dict[tuple[int, int], int] = {}  # in the stack of the layer's weights
        self._layers: dict[int, LayerWeights] = {}
        # Beside the stream of the batches, so that these do not queue up behind an upload.
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.add(self._upload(tensors))

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

    def prepare(self, tensors: Mapping[tuple[int, int], ExpertTensors]) -> _Uploaded:
        """See `ExpertBank.prepare`: they are in device memory then."""
        check_more(tensors, self._shape, self._name)
        return self._upload(tensors)

    def add(self, prepared: _Uploaded) -> None:
        """See `ExpertBank.add`. Copies the layers concerned on the device, one after another.

        Raises torch.OutOfMemoryError if there is no room for one layer more; none of the experts
        that are new is there then.
        """
        before = set(self._place)
        try:
            for layer, (experts, weights) in prepared.items():
                kept = self._kept(layer, experts)
                parts = [self._select(layer, kept), weights] if kept else [weights]
                self._layers[layer] = _joined(parts)
                self._renumber(layer, [*kept, *experts])
        except RuntimeError:
            # What did get in stays as ballast until the next change of its layer.
            new = {(at, e) for at, (experts, _) in prepared.items() for e in experts} - before
            self._place = {at: i for at, i in self._place.items() if at not in new}
            raise
        self._settle()

    def remove(self, experts: Collection[int]) -> None:
        """See `ExpertBank.remove`. Copies the layers concerned, as `add` does."""
        for layer in sorted({at for at, e in self._place if e in experts}):
            kept = self._kept(layer, experts)
            if kept:
                self._layers[layer] = self._select(layer, kept)
            else:
                del self._layers[layer]
            self._renumber(layer, kept)
        self._settle()

    def nbytes(self) -> int:
        """Bytes of weights in device memory."""
        return self._each * len(self._place)

    def _kept(self, layer: int, without: Collection[int]) -> list[int]:
        """The experts of a layer but these, in the order of their places."""
        held = sorted((i, e) for (at, e), i in self._place.items() if at == layer)
        return [e for _, e in held if e not in without]

    def _select(self, layer: int, experts: list[int]) -> LayerWeights:
        places = torch.tensor([self._place[layer, e] for e in experts], device=self._device)
        return LayerWeights(
            *(None if stack is None else stack[places] for stack in self._layers[layer])
        )

    def _renumber(self, layer: int, experts: list[int]) -> None:
        others = {at: i for at, i in self._place.items() if at[0] != layer}
        self._place = others | {(layer, e): i for i, e in enumerate(experts)}

    def _settle(self) -> None:
        """Wait for the copies: what they read may have come from, and returns to, `_side`."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).synchronize()

    def _upload(self, tensors: Mapping[tuple[int, int], ExpertTensors]) -> _Uploaded:
        uploaded = {}
        with torch.cuda.stream(self._side):
            for layer in sorted({layer for layer, _ in tensors}):
                experts = sorted(e for at, e in tensors if at == layer)
                uploaded[layer] = experts, self._stacked([tensors[layer, e] for e in experts])
        if self._side is not None:
            self._side.synchronize()
        return uploaded

    def _stacked(self, experts: list[ExpertTensors]) -> LayerWeights:
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


def _joined(parts: list[LayerWeights]) -> LayerWeights:
    """The experts of all parts in one stack, in memory of its own."""
    if len(parts) == 1:
        return parts[0]
    return LayerWeights(
        *(None if stacks[0] is None else torch.cat(stacks) for stacks in zip(*parts, strict=True))
    )
